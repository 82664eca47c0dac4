//! What a test needs of a cluster, whoever plays it.

use http::Request;
use kube::Client;
use serde_json::Value;

use crate::api_server::ApiServer;
use crate::control_plane::ControlPlane;

/// An API server: the small one in this process, or a real one.
pub trait Server {
    /// A client that may do everything.
    fn client(&self) -> Client;

    /// An object as it is stored; `name` is `namespace/name` for what is in one.
    async fn object(&self, resource: &str, name: &str) -> Option<Value> {
        let api = match resource.split_once('/') {
            None => "/api/v1".to_owned(),
            Some(("carina.storage.io", "nodestorageresources")) => "/apis/carina.storage.io/v1beta1".to_owned(),
            Some((group, _)) => format!("/apis/{group}/v1"),
        };
        let plural = resource.rsplit('/').next()?;
        let path = match name.split_once('/') {
            None => format!("{api}/{plural}/{name}"),
            Some((namespace, name)) => format!("{api}/namespaces/{namespace}/{plural}/{name}"),
        };
        match self.client().request::<Value>(Request::get(&path).body(Vec::new()).unwrap()).await {
            Ok(object) => Some(object),
            Err(kube::Error::Api(refused)) if refused.code == 404 => None,
            Err(error) => panic!("GET {path}: {error}"),
        }
    }
}

impl Server for ApiServer {
    fn client(&self) -> Client {
        Self::client(self)
    }

    /// Without a request, which a fault could be on.
    async fn object(&self, resource: &str, name: &str) -> Option<Value> {
        Self::object(self, resource, name)
    }
}

impl Server for ControlPlane {
    fn client(&self) -> Client {
        Self::client(self)
    }
}

/// A server as the owner of this client sees it.
impl Server for Client {
    fn client(&self) -> Client {
        self.clone()
    }
}

/// Makes two tests of each scenario: one against the API server in this process, in simulated time, and one
/// against a real kube-apiserver.
macro_rules! on_both {
    ($($scenario:ident),* $(,)?) => {
        mod in_process {
            use crate::api_server::ApiServer;
            $(
                #[tokio::test(start_paused = true)]
                async fn $scenario() {
                    super::$scenario(&ApiServer::new()).await;
                }
            )*
        }

        mod real {
            use crate::control_plane::ControlPlane;
            $(
                #[tokio::test(flavor = "multi_thread")]
                #[cfg_attr(
                    not(real_control_plane),
                    ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd"
                )]
                async fn $scenario() {
                    let server = ControlPlane::with_definitions().await;
                    super::$scenario(&server).await;
                }
            )*
        }
    };
}
pub(crate) use on_both;
