//! The CSI Identity service: who this is, what it can do as a whole, whether it is ready.

use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};

use crate::proto::identity_server::Identity;
use crate::proto::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use crate::proto::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};

/// The driver's name, as StorageClasses and PVs have it. It can't be changed: they would lose their driver.
pub const DRIVER_NAME: &str = "carina.storage.io";

pub(crate) struct IdentityService {
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) has_controller: bool,
}

#[async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: std::collections::HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = |kind: service::Type| Type::Service(Service { r#type: kind.into() });
        let mut types = vec![service(service::Type::VolumeAccessibilityConstraints)];
        if self.has_controller {
            types.push(service(service::Type::ControllerService));
        }
        types.push(Type::VolumeExpansion(VolumeExpansion { r#type: volume_expansion::Type::Online.into() }));
        let capabilities = types.into_iter().map(|kind| PluginCapability { r#type: Some(kind) }).collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(*self.ready.borrow()) }))
    }
}
