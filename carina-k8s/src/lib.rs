//! Carina in Kubernetes.
