//! A real kube-apiserver with its etcd, of the folder that `KUBEBUILDER_ASSETS` names.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams, ValidationDirective};
use kube::core::GroupVersionKind;
use kube::{Client, Config, discovery};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use crate::agent_program::free_address;
use crate::manifests::objects;

/// The token of one who may do everything.
const ADMIN: &str = "admin";

/// The two programs, which end with this, and a folder for what they keep.
pub struct ControlPlane {
    address: String,
    flags: Vec<String>,
    controller_manager: Option<Program>,
    // The server goes before its store.
    api_server: Option<Program>,
    etcd: Option<Program>,
    folder: tempfile::TempDir,
}

/// A program, which ends with this.
struct Program(Child);

impl ControlPlane {
    /// A server that is ready, with nothing of Carina in it.
    pub async fn start() -> Self {
        let (client, peer, address) = (free_address(), free_address(), free_address());
        let folder = tempfile::tempdir().unwrap();
        let mut plane =
            Self { controller_manager: None, api_server: None, etcd: None, flags: Vec::new(), address, folder };
        let etcd = format!("http://{client}");
        let path = |name: &str| plane.folder.path().join(name).display().to_string();
        std::fs::write(path("tokens.csv"), format!("{ADMIN},{ADMIN},{ADMIN},\"system:masters\"\n")).unwrap();
        let (private, public) = keys();
        std::fs::write(path("private.pem"), private).unwrap();
        std::fs::write(path("public.pem"), public).unwrap();
        let store = [
            format!("--data-dir={}", path("etcd")),
            format!("--listen-client-urls={etcd}"),
            format!("--advertise-client-urls={etcd}"),
            format!("--listen-peer-urls=http://{peer}"),
            "--unsafe-no-fsync".to_owned(),
        ];
        let (host, port) = plane.address.split_once(':').unwrap();
        let server = vec![
            format!("--etcd-servers={etcd}"),
            format!("--bind-address={host}"),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", path("certificates")),
            format!("--token-auth-file={}", path("tokens.csv")),
            format!("--service-account-key-file={}", path("public.pem")),
            format!("--service-account-signing-key-file={}", path("private.pem")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged".to_owned(),
            // Pods would wait for accounts that nobody makes here.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        plane.etcd = Some(plane.run("etcd", &store));
        plane.flags = server;
        plane.start_api_server().await;
        plane
    }

    /// Ends the API server at whatever it is doing.
    pub fn stop_api_server(&mut self) {
        self.api_server = None;
    }

    /// Starts the API server over what it kept, and waits until it is ready.
    pub async fn start_api_server(&mut self) {
        self.api_server = Some(self.run("kube-apiserver", &self.flags));
        self.ready().await;
    }

    /// The same with the definitions of Carina's resources.
    pub async fn with_definitions() -> Self {
        let plane = Self::start().await;
        for definition in objects("deploy/kubernetes/crds") {
            plane.apply(&definition).await;
        }
        for plural in ["v1/logicvolumes", "v1beta1/nodestorageresources"] {
            let path = format!("/apis/carina.storage.io/{plural}");
            plane.until_served(&path).await;
        }
        plane
    }

    /// Starts kube-controller-manager with these controllers, if it is there too; whether it is.
    pub fn start_controller_manager(&mut self, controllers: &[&str]) -> bool {
        if !assets().join("kube-controller-manager").exists() {
            return false;
        }
        let file = self.folder.path().join("kubeconfig");
        let server = format!("https://{}", self.address);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
            "users": [{"name": "u", "user": {"token": ADMIN}}],
        });
        std::fs::write(&file, config.to_string()).unwrap();
        let port = free_address().rsplit(':').next().unwrap().to_owned();
        let file = file.display();
        let flags = [
            format!("--kubeconfig={file}"),
            format!("--authentication-kubeconfig={file}"),
            format!("--authorization-kubeconfig={file}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", self.folder.path().join("manager").display()),
            "--leader-elect=false".to_owned(),
            format!("--controllers={}", controllers.join(",")),
        ];
        self.controller_manager = Some(self.run("kube-controller-manager", &flags));
        true
    }

    /// A client that may do everything.
    pub fn client(&self) -> Client {
        self.client_with(ADMIN)
    }

    /// A client that may do what this service account of kube-system may.
    pub async fn client_of(&self, account: &str) -> Client {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), "kube-system");
        let asked = TokenRequest { spec: TokenRequestSpec::default(), ..TokenRequest::default() };
        let token = accounts.create_token_request(account, &PostParams::default(), &asked).await.unwrap();
        self.client_with(&token.status.unwrap().token)
    }

    fn client_with(&self, token: &str) -> Client {
        let mut config = Config::new(format!("https://{}", self.address).parse().unwrap());
        // It signs its certificate itself.
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(token.to_owned().into());
        config.default_namespace = "kube-system".to_owned();
        carina_k8s::client::client("carina-test", config).unwrap()
    }

    /// Applies an object as `kubectl apply --server-side --validate=strict` does: a field that the server
    /// doesn't know is an error.
    pub async fn apply(&self, object: &Value) -> DynamicObject {
        let client = self.client();
        let types = serde_json::from_value(object.clone()).unwrap();
        let kind = GroupVersionKind::try_from(&types).unwrap();
        let (kind, _): (ApiResource, _) = discovery::pinned_kind(&client, &kind).await.unwrap();
        let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(client, namespace, &kind),
            None => Api::all_with(client, &kind),
        };
        let how = PatchParams { field_validation: Some(ValidationDirective::Strict), ..PatchParams::apply("test") };
        let name = object["metadata"]["name"].as_str().unwrap();
        let applied = api.patch(name, &how, &Patch::Apply(object)).await;
        applied.unwrap_or_else(|e| panic!("{} {name}: {e}", kind.kind))
    }

    /// Waits until a path of the API answers.
    pub async fn until_served(&self, path: &str) {
        let client = self.client();
        let asked = || client.request::<Value>(http::Request::get(path).body(Vec::new()).unwrap());
        self.within_two_minutes(path, async || asked().await.is_ok()).await;
    }

    async fn ready(&self) {
        let client = self.client();
        let asked = || client.request_text(http::Request::get("/readyz").body(Vec::new()).unwrap());
        self.within_two_minutes("the API server is ready", async || asked().await.is_ok()).await;
    }

    async fn within_two_minutes(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        for _ in 0..1200 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let log = std::fs::read_to_string(self.folder.path().join("kube-apiserver.log")).unwrap_or_default();
        let end: Vec<&str> = log.lines().rev().take(20).collect();
        panic!("not within two minutes: {what}; kube-apiserver said last (newest first):\n{}", end.join("\n"));
    }

    fn run(&self, program: &str, arguments: &[String]) -> Program {
        let log = File::create(self.folder.path().join(format!("{program}.log"))).unwrap();
        let program = assets().join(program);
        let child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{}, which KUBEBUILDER_ASSETS promises: {e}", program.display()));
        Program(child)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn assets() -> PathBuf {
    let folder = std::env::var_os("KUBEBUILDER_ASSETS").expect("KUBEBUILDER_ASSETS, which was set when this was built");
    Path::new(&folder).to_owned()
}

/// What stands before the point of a P-256 key in a SubjectPublicKeyInfo (RFC 5480).
const P256_INFO: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A pair of keys for the tokens of service accounts, in PEM: the private one and the public one.
fn keys() -> (String, String) {
    let random = SystemRandom::new();
    let private = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private.as_ref(), &random).unwrap();
    let pem = |what: &str, der: &[u8]| {
        format!("-----BEGIN {what} KEY-----\n{}\n-----END {what} KEY-----\n", STANDARD.encode(der))
    };
    let public = [&P256_INFO, pair.public_key().as_ref()].concat();
    (pem("PRIVATE", private.as_ref()), pem("PUBLIC", &public))
}
