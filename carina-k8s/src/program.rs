//! What both binaries begin and end with: the log, the signals, the client.

use std::future::Future;
use std::process::ExitCode;

use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Sets up the log (`RUST_LOG` says how much) and a client, runs the program until a signal ends it, and
/// says how it ended.
pub fn main<F, E>(name: &str, run: impl FnOnce(Client, Signal) -> F) -> ExitCode
where
    F: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(name, &format!("no runtime: {error}")),
    };
    runtime.block_on(async {
        let client = match crate::client::infer(name).await {
            Ok(client) => client,
            Err(error) => {
                return fail(name, &format!("no way to a cluster, neither by KUBECONFIG nor from inside one: {error}"));
            }
        };
        match run(client, Signal).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(name, &error.to_string()),
        }
    })
}

fn fail(name: &str, message: &str) -> ExitCode {
    eprintln!("{name}: {message}");
    ExitCode::FAILURE
}

/// The signal that ends the program.
#[derive(Debug, Clone, Copy)]
pub struct Signal;

impl Signal {
    /// Waits for SIGTERM or SIGINT.
    pub async fn received(self) {
        let wait = async |kind| match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(error) => {
                tracing::warn!("a signal cannot be waited for: {error}");
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = wait(SignalKind::terminate()) => {}
            () = wait(SignalKind::interrupt()) => {}
        }
    }
}
