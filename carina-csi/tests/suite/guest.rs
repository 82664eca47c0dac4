//! A run of every rule over one engine whose disks are real, one rule after another.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use carina_core::exec::ProcessRunner;
use carina_core::{Engine, VolumeService, VolumeType};
use carina_csi::LinuxMounter;
use futures::FutureExt;

use super::every_rule;
use super::fixture::{Fixture, Machine, unmount_below};

/// All parts of the suite.
pub const ALL: [&str; 3] = ["identity", "controller", "node"];

/// Asks for volumes of this kind by every rule of these parts of the suite. Rules share the disks, and each is
/// to find the room that it expects.
pub async fn rules_hold(engine: &Engine, kind: VolumeType, parts: &[&str]) {
    let mut failed = Vec::new();
    macro_rules! run_rules {
        ($($module:ident :: $rule:ident,)*) => {
            $(
                if parts.contains(&stringify!($module)) {
                    let started = Instant::now();
                    let mut f = fixture(engine, kind).await;
                    let held = AssertUnwindSafe(super::$module::$rule(&f)).catch_unwind().await.is_ok();
                    let word = if held { "held" } else { "BROKEN" };
                    println!("{word} {} ({:?})", stringify!($rule), started.elapsed());
                    if !held {
                        failed.push(stringify!($rule));
                    }
                    f.ask_to_stop();
                    f.ended().await;
                    clean(&f, engine).await;
                }
            )*
        };
    }
    every_rule!(run_rules);
    let f = super::node::a_restart_forgets_nothing_that_matters(fixture(engine, kind).await).await;
    clean(&f, engine).await;
    assert!(failed.is_empty(), "{failed:?}");
}

async fn fixture(engine: &Engine, kind: VolumeType) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine {
        service: Arc::new(engine.clone()),
        mounter: Arc::new(LinuxMounter::new(Arc::new(ProcessRunner::new()))),
        memory: None,
        kind,
        folder: folder.path().canonicalize().unwrap(),
        guard: Box::new(folder),
    };
    Fixture::serve(machine).await
}

/// Takes down what a failed rule left, so that the next one finds the groups empty.
async fn clean(f: &Fixture, engine: &Engine) {
    unmount_below(&f.machine.folder);
    for volume in engine.list().await.unwrap() {
        let _ = engine.detach(&volume.id).await;
        engine.delete(&volume.id).await.unwrap();
    }
    f.until(async || engine.background().await.unwrap().is_empty()).await;
}
