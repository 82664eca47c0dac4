//! Bare disks join their groups: at start, when the config changes, and at its interval.

use std::collections::BTreeSet;
use std::sync::Arc;

use carina_core::config::Config;
use carina_core::{Engine, GroupPlan, Result};
use tokio::sync::{Notify, watch};

/// Groups the disks of this node by the config, for ever.
pub async fn keep_grouped(
    engine: Engine,
    mut settings: watch::Receiver<Config>,
    mut labels: watch::Receiver<BTreeSet<String>>,
    changed: Arc<Notify>,
) {
    let mut said = String::new();
    loop {
        let (config, labels_now) = (settings.borrow_and_update().clone(), labels.borrow_and_update().clone());
        match group(&engine, &config, &labels_now, &mut said).await {
            Ok(0) => {}
            Ok(_) => changed.notify_one(),
            Err(error) => {
                tracing::error!("the disks were not all grouped, which is tried again at the next scan: {error}");
            }
        }
        let next_scan = async {
            match config.scan_interval {
                Some(interval) => tokio::time::sleep(interval).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = next_scan => {}
            changed = settings.changed() => if changed.is_err() { std::future::pending::<()>().await },
            changed = labels.changed() => if changed.is_err() { std::future::pending::<()>().await },
        }
    }
}

/// Takes the steps that bring the groups to what the config says; how many were taken.
async fn group(engine: &Engine, config: &Config, labels: &BTreeSet<String>, said: &mut String) -> Result<usize> {
    let plan = GroupPlan::new(&engine.disks().await?, &engine.groups().await?, config, labels);
    // Said once, and again when it changes: not at every scan.
    let text = plan.to_string();
    if *said != text {
        tracing::info!("disks:\n{text}");
        *said = text;
    }
    if config.dry_run {
        return Ok(0);
    }
    for step in &plan.steps {
        engine.apply(step.clone()).await?;
    }
    Ok(plan.steps.len())
}
