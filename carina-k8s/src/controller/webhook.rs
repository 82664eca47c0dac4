//! The webhook: pods with volumes of ours are sent to our scheduler, and StorageClasses of ours are checked.

mod admission;
mod authority;
mod class;
mod keeper;
mod lookup;
mod pages;
mod pod;

pub use keeper::{CONFIGURATION, Clock, Keeper, SECRET};
pub use lookup::Lookup;
pub use pages::router;
pub use pod::{SCHEDULER, Scheduling};

use std::sync::Arc;
use std::time::Duration;

use carina_core::Result;
use jiff::Timestamp;
use kube::Client;
use tokio::task::JoinSet;

use crate::door::{self, Certificate};
use crate::options::ControllerOptions;
use crate::web;

/// The most bytes of a question: an API server takes objects of 3 MiB, and a question may have two.
const BODY: usize = 8 << 20;
/// How long a question may take, from its head to the answer.
const WITHIN: Duration = Duration::from_secs(10);

/// Serves the webhook as the options say, as long as the tasks run; what the leader has to do for its
/// certificate, if anything.
///
/// # Errors
/// If its address is taken.
pub async fn start(options: &ControllerOptions, client: Client, tasks: &mut JoinSet<()>) -> Result<Option<Keeper>> {
    let Some(address) = options.webhook_addr.0 else { return Ok(None) };
    let listener = web::listen(address).await?;
    let certificate = Certificate::default();
    let keeper = match &options.webhook_cert_dir {
        Some(folder) => {
            tasks.spawn(certificate.clone().follow(folder.join("tls.crt"), folder.join("tls.key")));
            None
        }
        None => {
            let clock: Clock = Arc::new(Timestamp::now);
            let keeper = Keeper::new(client.clone(), &options.namespace, certificate.clone(), clock);
            tasks.spawn(keeper.clone().follow());
            Some(keeper)
        }
    };
    let (lookup, following) = Lookup::new(client);
    tasks.spawn(following);
    let pages = door::limited(router(lookup, options.scheduling), BODY, WITHIN);
    tasks.spawn(door::serve(listener, pages, Some(certificate)));
    Ok(keeper)
}
