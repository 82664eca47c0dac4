//! Kubelet's contracts, as generated from `proto/`.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// How kubelet learns of a driver (pluginregistration/v1).
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// How kubelet learns of resources (deviceplugin/v1beta1).
pub mod device_plugin {
    tonic::include_proto!("v1beta1");
}
