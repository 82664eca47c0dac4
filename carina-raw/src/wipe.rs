//! The zeroing of deleted volumes, in the background.

use std::sync::{Arc, PoisonError};

use carina_core::{Bytes, Error, Result, Zeroing};

use crate::member::Member;
use crate::owned_disk::WipeJob;

/// What is zeroed at a time: short enough for a disk that turns not to hold up others for long.
const CHUNK: Bytes = Bytes::mib(64);
/// How much is zeroed between two records of how far it is.
const RECORDED_EVERY: Bytes = Bytes::mib(256);

/// Begins, or resumes, the wipes that the disk's record has and that aren't running.
pub(crate) fn start(member: &Arc<Member>) {
    for job in member.view().contents.wipes() {
        let mut wiping = member.wiping.lock().unwrap_or_else(PoisonError::into_inner);
        if wiping.insert(job.partition) {
            tokio::spawn(run(Arc::clone(member), job));
        }
    }
}

async fn run(member: Arc<Member>, mut job: WipeJob) {
    let _running = Running { member: Arc::clone(&member), job: job.clone() };
    let (mut failures, mut before) = (0, job.done);
    while let Err(error) = wipe(&member, &mut job).await {
        member.set_wipe_problem(job.partition, Some(error.to_string()));
        // Another program changed the table there, or the disk is gone: nothing more may be written.
        if matches!(error, Error::Precondition(_) | Error::Unhealthy(_)) || member.view().problem.is_some() {
            tracing::warn!("stopped zeroing the blocks of {} at {} of {}: {error}", job.id, job.done, job.size);
            return;
        }
        failures = if job.done > before { 1 } else { failures + 1 };
        before = job.done;
        let pause = Zeroing::pause(failures);
        tracing::warn!(
            "zeroing the blocks of {} failed at {} of {} and goes on in {pause:?}: {error}",
            job.id,
            job.done,
            job.size
        );
        tokio::time::sleep(pause).await;
    }
    member.set_wipe_problem(job.partition, None);
    tracing::info!("the blocks of {} on {} are zeroed; {} are free again", job.id, member.name, job.size);
}

/// Zeroes what is left of the job and gives its space back.
async fn wipe(member: &Arc<Member>, job: &mut WipeJob) -> Result<()> {
    let what = format!("zero the blocks of {}", job.id);
    while job.done < job.size {
        let (confirmed, done) = (job.clone(), job.done);
        member.change(&what, move |disk| disk.wipe_progress(&confirmed, done)).await?;
        let upto = job.done.saturating_add(RECORDED_EVERY).min(job.size);
        while job.done < upto {
            let length = upto.saturating_sub(job.done).min(CHUNK);
            let (chunk, at) = (job.clone(), job.start.saturating_add(job.done));
            member.beside(move |disk| disk.wipe(&chunk, at, length)).await?;
            job.done = job.done.saturating_add(length);
            member.set_wipe_problem(job.partition, None);
        }
        if job.done < job.size {
            tracing::debug!("zeroed {} of {} of {} on {}", job.done, job.size, job.id, member.name);
        }
    }
    let confirmed = job.clone();
    member.change(&what, move |disk| disk.finish_wipe(&confirmed)).await?;
    Ok(())
}

/// Takes the job off the list of those running when it ends, however it ends.
struct Running {
    member: Arc<Member>,
    job: WipeJob,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.member.wiping.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.job.partition);
    }
}
