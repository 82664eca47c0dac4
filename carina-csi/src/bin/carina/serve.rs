//! `carina serve`: CSI on a socket, over the engine of this machine.

use std::time::Duration;

use carina_core::Engine;
use carina_csi::{Endpoint, NodeName};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Class, Failure};
use crate::grouping;
use crate::node::{self, RunningNode};
use crate::options::{LoadedConfig, Options};
use crate::output;
use crate::serving::Bound;

/// Serve CSI on a unix socket.
///
/// Recovers what a crash left half done, groups the disks by the config, then answers. SIGHUP reads
/// the config and looks at the disks again, which also happens every diskScanInterval. SIGTERM and
/// SIGINT end it when what is in flight is done; a second one ends it at once.
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
        let at_start = (config.config.reserve, config.config.minimum_disk_size);
        self.group(&node.engine, &config).await;
        let mut serving = bound.start(&node.engine, node::mounter(options.backend, &node.engine), name);
        output::print(&format!("carina: ready on {endpoint}"))?;
        loop {
            tokio::select! {
                heard = signals.next(config.config.scan_interval) => match heard {
                    Heard::End => break,
                    Heard::Look => {}
                },
                failure = serving.failed() => return Err(failure),
            }
            match options.load_config() {
                Ok(read) => {
                    if (read.config.reserve, read.config.minimum_disk_size) != at_start {
                        tracing::warn!(
                            "reserve and minimumDiskSize have changed; the change takes effect at the next start"
                        );
                    }
                    node.placement.set_strategy(read.config.strategy);
                    config = read;
                }
                Err(failure) => tracing::error!("{}; the config from before stays", failure.message),
            }
            self.group(&node.engine, &config).await;
        }
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

    /// Brings the groups to what the config says, or says what that would be. A group that can't be made
    /// is logged: the volumes that there are want to be served all the same.
    async fn group(&self, engine: &Engine, config: &LoadedConfig) {
        for warning in &config.warnings {
            tracing::warn!("{}: {warning}", config.source);
        }
        let plan = match grouping::plan_for(engine, config).await {
            Ok(plan) => plan,
            Err(failure) => return tracing::error!("the disks cannot be looked at: {}", failure.message),
        };
        for warning in &plan.warnings {
            tracing::warn!("{warning}");
        }
        for note in &plan.notes {
            tracing::info!("{note}");
        }
        for left in &plan.left {
            tracing::info!("disk {} is left alone: {}", left.disk, left.why);
        }
        if self.dry_run || config.config.dry_run {
            for step in &plan.steps {
                tracing::info!("dry run: would {step}");
            }
        } else if let Err(failure) = grouping::apply(engine, &plan, |step| tracing::info!("{step}")).await {
            tracing::error!("{}", failure.message);
        }
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

    /// Waits for a signal, or for the time to look at the disks again where there is an interval.
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
            () = pause => Heard::Look,
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
}
