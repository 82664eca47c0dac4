//! The CSI driver of Carina.
