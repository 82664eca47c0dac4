//! `carina serve`: CSI on a socket, over the engine of this machine.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carina_core::exec::ProcessRunner;
use carina_core::{Config, Event, Keeper, Monitor, Reason, Subject};
use carina_csi::{Endpoint, NodeName};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::failure::{Class, Failure};
use crate::node::{self, RunningNode};
use crate::options::{LoadedConfig, Options};
use crate::output;
use crate::serving::Bound;

/// How often the config is read again; a change is lived by at once.
const READ_CONFIG: Duration = Duration::from_secs(10);

/// Serve CSI on a unix socket.
///
/// Recovers what a crash left half done, groups the disks by the config, then answers. The disks are
/// looked at again when one comes, goes or grows, when the config changes, every diskScanInterval, and
/// on SIGHUP. SIGTERM and SIGINT end it when what is in flight is done; a second one ends it at once.
#[derive(Debug, Args)]
pub struct Serve {
    /// The socket: unix:///path/csi.sock
    #[arg(long, env = "CSI_ENDPOINT", value_name = "ENDPOINT")]
    endpoint: String,
    /// Say what grouping would do with the disks, and claim none
    #[arg(long)]
    dry_run: bool,
}

impl Serve {
    /// Serves until a signal ends it.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        let name = NodeName::new(options.node_name()?)
            .map_err(|e| Failure::new(Class::Usage, format!("{e}, with --node-name")))?;
        // Said in full, so that whoever is told of it can use it from anywhere.
        let endpoint = format!("unix://{}", self.endpoint.parse::<Endpoint>()?.path().display());
        let bound = Bound::listen(&endpoint)?;
        let node = RunningNode::start(options, &format!("carina serve --endpoint {endpoint}")).await?;
        let mut config = node.config;
        let settings = watch::Sender::new(self.orders(&config));
        // A machine without Kubernetes has no labels.
        let labels = watch::Sender::new(Some(BTreeSet::new()));
        let looked = Arc::new(Notify::new());
        let devices = node::device_events(options.backend);
        let keeper =
            Keeper::new(node.engine.clone(), settings.subscribe(), labels.subscribe(), devices, Arc::clone(&looked));
        let kept = tokio::spawn(keeper.run());
        looked.notified().await;
        tokio::spawn(Monitor::new(node.engine.clone()).with_host(Arc::new(ProcessRunner::new())).run());
        let mut serving = bound.start(&node.engine, node::mounter(options.backend, &node.engine), name);
        output::print(&format!("carina: ready on {endpoint}"))?;
        loop {
            let asked = tokio::select! {
                heard = signals.next(Some(READ_CONFIG)) => match heard {
                    Heard::End => break,
                    Heard::Look => true,
                    Heard::Nothing => false,
                },
                failure = serving.failed() => return Err(failure),
            };
            let rejected = match options.load_config() {
                Ok(read) => {
                    let changed = read.config != config.config;
                    if asked || changed {
                        node.placement.set_strategy(read.config.strategy);
                        config = read;
                        settings.send_replace(self.orders(&config));
                    }
                    None
                }
                Err(failure) => {
                    let message = format!("{}; the config from before stays", failure.message);
                    Some(Event::new(Subject::Node, Reason::ConfigRejected, message, SystemTime::now()))
                }
            };
            node.engine.stand("config", SystemTime::now(), rejected.into_iter().collect());
        }
        kept.abort();
        tracing::info!("ending when what is in flight is done; another signal ends at once");
        let ended = async {
            serving.stop().await?;
            node.engine.idle().await;
            Ok(())
        };
        tokio::select! {
            ended = ended => ended,
            () = signals.end() => Err(Failure::new(
                Class::Failed,
                "ended by a second signal with work in flight; the next start finishes or undoes it",
            )),
        }
    }

    /// What the keeper of the disks is told of a config.
    fn orders(&self, config: &LoadedConfig) -> Config {
        for warning in &config.warnings {
            tracing::warn!("{}: {warning}", config.source);
        }
        Config { dry_run: self.dry_run || config.config.dry_run, ..config.config.clone() }
    }
}

/// The signals that a server heeds.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|e| Failure::new(Class::Failed, format!("signals cannot be listened for: {e}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal, for so long if a time is given.
    async fn next(&mut self, interval: Option<Duration>) -> Heard {
        let pause = async {
            match interval {
                Some(interval) => tokio::time::sleep(interval).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Heard::End,
            _ = self.interrupt.recv() => Heard::End,
            _ = self.hang_up.recv() => Heard::Look,
            () = pause => Heard::Nothing,
        }
    }

    /// Waits for a signal to end.
    async fn end(&mut self) {
        while self.next(None).await != Heard::End {}
    }
}

/// What a server is told to do.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// End.
    End,
    /// Read the config and look at the disks again.
    Look,
    /// Nothing, for as long as was waited.
    Nothing,
}
