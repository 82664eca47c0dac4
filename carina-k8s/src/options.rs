//! The flags and variables of the binaries.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use carina_core::Error;
use carina_csi::{Endpoint, NodeName};
use clap::{Parser, Subcommand, ValueEnum};

use crate::controller::webhook::Scheduling;

/// The agent of a node: makes and mounts the volumes on its disks, and publishes what it has.
///
/// KUBECONFIG names the cluster; without it, the agent is in one.
#[derive(Debug, Clone, Parser)]
#[command(name = "carina-node", version)]
pub struct NodeOptions {
    /// The name of this node, as Kubernetes knows it.
    #[arg(long, env = "NODE_NAME", value_parser = node_name)]
    pub node_name: NodeName,
    /// The unix socket of the CSI Node service, which kubelet and the registrar call.
    #[arg(long, env = "CSI_ADDRESS", default_value = "/csi/csi.sock")]
    pub csi_address: Endpoint,
    /// Where Prometheus gets /metrics.
    #[arg(long, default_value = ":8080")]
    pub metrics_addr: Address,
    /// Where /healthz, /readyz, /devicegroup and /volume are served.
    #[arg(long, default_value = ":8089")]
    pub http_addr: Address,
    /// The config file: which disks may be claimed. It is read again when it changes.
    #[arg(long, default_value = "/etc/carina/config.json")]
    pub config: PathBuf,
    /// What the volumes are made on: the LVM2 and the raw disks of this machine, or, for trials, simulated
    /// disks alone.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [BackendKind::Lvm, BackendKind::Raw])]
    pub backend: Vec<BackendKind>,
    /// Where simulated disks are kept.
    #[arg(long, default_value = "/var/lib/carina/sim")]
    pub sim_dir: PathBuf,
    /// The socket by which kubelet learns of the driver, in kubelet's plugins_registry; `none` if a
    /// node-driver-registrar beside it does that.
    #[arg(long, default_value = "/var/lib/kubelet/plugins_registry/carina.storage.io-reg.sock")]
    pub registration_socket: OrNone<AbsolutePath>,
    /// The CSI socket as kubelet sees it, if that is another path than --csi-address.
    #[arg(long)]
    pub kubelet_registration_path: Option<PathBuf>,
    /// The folder of kubelet.sock, where the GiB of each group and raw disk are registered as resources of
    /// the node (device plugins); `none` if the node is not to show them.
    #[arg(long, default_value = "/var/lib/kubelet/device-plugins")]
    pub device_plugins: OrNone<AbsolutePath>,
    /// The id of this cluster, written beside each volume; volumes of another cluster are left alone.
    /// Without it, the uid of the namespace kube-system is the id; it is kept in the file cluster-id beside the
    /// CSI socket.
    #[arg(long, env = "CLUSTER_ID")]
    pub cluster_id: Option<String>,
    /// The namespace of the ConfigMap carina-tombstones.
    #[arg(long, env = "NAMESPACE", default_value = "kube-system")]
    pub namespace: String,
}

/// The controller: places volumes and waits for the agents to make them.
///
/// KUBECONFIG names the cluster; without it, the controller is in one.
#[derive(Debug, Clone, Parser)]
#[command(name = "carina-controller", version)]
pub struct ControllerOptions {
    /// The unix socket of the CSI Controller service, which the sidecars call.
    #[arg(long, env = "CSI_ADDRESS", default_value = "/csi/csi-provisioner.sock")]
    pub csi_address: Endpoint,
    /// Where Prometheus gets /metrics.
    #[arg(long, default_value = ":8080")]
    pub metrics_addr: Address,
    /// Where /healthz, /readyz, /devicegroup and /volume are served.
    #[arg(long, default_value = ":8089")]
    pub http_addr: Address,
    /// Where the API server asks about pods and StorageClasses (TLS); `none` if it doesn't.
    #[arg(long, default_value = ":8443")]
    pub webhook_addr: OrNone<Address>,
    /// A folder with tls.crt and tls.key for the webhook, as cert-manager keeps them; without it, the
    /// controller makes and renews a certificate by itself.
    #[arg(long)]
    pub webhook_cert_dir: Option<PathBuf>,
    /// Who keeps pods off nodes without room: carina-scheduler with its extender, to which the webhook then
    /// sends pods that have volumes of Carina's, or any scheduler by the capacity objects of csi-provisioner.
    #[arg(long, env = "SCHEDULING", value_enum, default_value_t = Scheduling::Extender)]
    pub scheduling: Scheduling,
    /// The config file: how nodes are chosen. It is read again when it changes.
    #[arg(long, default_value = "/etc/carina/config.json")]
    pub config: PathBuf,
    /// The namespace of the lease of the leader and of the ConfigMap carina-node-storage.
    #[arg(long, env = "NAMESPACE", default_value = "kube-system")]
    pub namespace: String,
    /// What this replica is called in the lease.
    #[arg(long, env = "POD_NAME", default_value = "carina-controller")]
    pub pod_name: String,
    /// How long a call waits for a node's agent, in seconds; a little less than the sidecars' --timeout.
    #[arg(long, default_value_t = 140)]
    pub agent_timeout: u64,
}

/// The scheduler's extender: says where a pod's volumes have room, and keeps that room for it meanwhile.
///
/// KUBECONFIG names the cluster; without it, the extender is in one.
#[derive(Debug, Clone, Parser)]
#[command(name = "carina-scheduler", version)]
pub struct SchedulerOptions {
    /// Something else to do than to serve.
    #[command(subcommand)]
    pub command: Option<SchedulerCommand>,
    /// Where the scheduler asks: /filter, /prioritize and /preempt.
    #[arg(long, default_value = ":8880")]
    pub extender_addr: Address,
    /// Where Prometheus gets /metrics.
    #[arg(long, default_value = ":8080")]
    pub metrics_addr: Address,
    /// Where /healthz, /readyz and /explain are served.
    #[arg(long, default_value = ":8089")]
    pub http_addr: Address,
    /// The config file: how nodes are chosen. It is read again when it changes.
    #[arg(long, default_value = "/etc/carina/config.json")]
    pub config: PathBuf,
    /// The namespace of the lease of the leader.
    #[arg(long, env = "NAMESPACE", default_value = "kube-system")]
    pub namespace: String,
    /// What this replica is called in the lease.
    #[arg(long, env = "POD_NAME", default_value = "carina-scheduler")]
    pub pod_name: String,
    /// How long an answer holds space without a sign of which node was taken, in seconds; longer than the
    /// scheduler's own writes can be late. A new leader waits as long before it answers.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub hold_seconds: u64,
    /// The certificate chain (PEM) of the extender's port; without one it is plain HTTP.
    #[arg(long, requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// The key (PEM) of the certificate.
    #[arg(long, requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
}

/// What else the extender's program does.
#[derive(Debug, Clone, Subcommand)]
pub enum SchedulerCommand {
    /// Ask a running extender why a pod goes where it goes, or nowhere.
    Explain {
        /// The pod, as namespace/name.
        pod: String,
        /// Where the extender serves /explain.
        #[arg(long, default_value = "127.0.0.1:8089")]
        server: String,
        /// How to show it.
        #[arg(long, short, default_value = "text", value_parser = ["text", "json"])]
        output: String,
    },
}

/// What volumes are made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendKind {
    /// The LVM2 of this machine.
    Lvm,
    /// The raw disks of this machine.
    Raw,
    /// Simulated disks, kept in files.
    Sim,
}

/// Something, or the word `none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrNone<T>(pub Option<T>);

impl<T: FromStr<Err = Error>> FromStr for OrNone<T> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|value| Self(Some(value))) }
    }
}

/// An absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbsolutePath(pub PathBuf);

impl FromStr for AbsolutePath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.starts_with('/') {
            return Ok(Self(text.into()));
        }
        Err(Error::InvalidArgument(format!("\"{text}\" is no absolute path; write one, or none")))
    }
}

/// An address to listen on: `host:port`, or `:port` for every address of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(pub SocketAddr);

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let whole = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
        whole.parse().map(Self).map_err(|e| {
            Error::InvalidArgument(format!(
                "\"{text}\" is no address to listen on ({e}); write :8080 or 127.0.0.1:8080"
            ))
        })
    }
}

fn node_name(text: &str) -> Result<NodeName, Error> {
    NodeName::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_well_formed_and_each_is_explained() {
        for command in [NodeOptions::command(), ControllerOptions::command(), SchedulerOptions::command()] {
            command.clone().debug_assert();
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "--{}", argument.get_id());
            }
        }
    }

    #[test]
    fn what_kubelet_is_told_can_be_turned_off() {
        let parse =
            |flags: &[&str]| NodeOptions::try_parse_from(["carina-node", "--node-name", "n1"].iter().chain(flags));
        assert!(parse(&[]).unwrap().device_plugins.0.is_some());
        let off = parse(&["--device-plugins", "none", "--registration-socket", "none"]).unwrap();
        assert_eq!((off.device_plugins, off.registration_socket), (OrNone(None), OrNone(None)));
        assert!(parse(&["--device-plugins", "false"]).is_err());
    }

    #[test]
    fn addresses_are_read_as_go_programs_write_them() {
        assert_eq!(":8080".parse::<Address>().unwrap().0.to_string(), "0.0.0.0:8080");
        assert_eq!("127.0.0.1:1".parse::<Address>().unwrap().0.to_string(), "127.0.0.1:1");
        assert!("8080".parse::<Address>().is_err());
    }
}
