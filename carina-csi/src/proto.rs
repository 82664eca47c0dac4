//! The CSI contract, version 1.12, as generated from `proto/csi/v1/csi.proto`.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

tonic::include_proto!("csi.v1");

/// The descriptors of the contract, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/csi.descriptors"));

/// Carina's own services beside the contract, as generated from `proto/carina/v1/`.
pub mod carina {
    tonic::include_proto!("carina.v1");
}
