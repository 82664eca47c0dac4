//! The rules of the Identity service, and what every gRPC server here has beside CSI.

use carina_csi::proto::plugin_capability::{Type, service, volume_expansion};
use carina_csi::proto::{self};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::fixture::Fixture;

pub async fn the_driver_says_who_it_is_and_what_it_can(f: &Fixture) {
    let mut identity = f.identity.clone();
    let info = identity.get_plugin_info(proto::GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "carina.storage.io");
    assert_eq!(info.vendor_version, env!("CARGO_PKG_VERSION"));
    let request = proto::GetPluginCapabilitiesRequest {};
    let capabilities = identity.get_plugin_capabilities(request).await.unwrap().into_inner().capabilities;
    let has = |wanted: Type| capabilities.iter().any(|capability| capability.r#type == Some(wanted));
    let of = |kind: service::Type| Type::Service(proto::plugin_capability::Service { r#type: kind.into() });
    assert!(has(of(service::Type::ControllerService)));
    assert!(has(of(service::Type::VolumeAccessibilityConstraints)));
    assert!(has(Type::VolumeExpansion(proto::plugin_capability::VolumeExpansion {
        r#type: volume_expansion::Type::Online.into()
    })));
    assert_eq!(capabilities.len(), 3, "no snapshots, no groups yet");
}

pub async fn probe_and_health_say_whether_it_is_ready(f: &Fixture) {
    let probe = || async { f.identity.clone().probe(proto::ProbeRequest {}).await.unwrap().into_inner().ready };
    let health = |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut client = HealthClient::new(f.channel.clone());
        async move { client.check(request).await.unwrap().into_inner().status() }
    };
    assert_eq!(probe().await, Some(true));
    f.readiness.set(false);
    assert_eq!(probe().await, Some(false), "not ready is an answer, not an error");
    for service in ["", "csi.v1.Identity", "csi.v1.Controller", "csi.v1.Node"] {
        let mut watch = HealthClient::new(f.channel.clone())
            .watch(HealthCheckRequest { service: service.to_owned() })
            .await
            .unwrap();
        let updates = watch.get_mut();
        while updates.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
    }
    f.readiness.set(true);
    let mut watch =
        HealthClient::new(f.channel.clone()).watch(HealthCheckRequest { service: String::new() }).await.unwrap();
    while watch.get_mut().message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    assert_eq!(health("").await, ServingStatus::Serving);
    assert_eq!(probe().await, Some(true));
}

pub async fn reflection_lists_the_services(f: &Fixture) {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(f.channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
    for name in ["csi.v1.Identity", "csi.v1.Controller", "csi.v1.Node", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|has| has == name), "{name} is not among {names:?}");
    }
}
