//! Bringing disks into a group that is there.
//!
//! LVM puts its mark on a disk first and writes the disk into the group after that: cut between the two,
//! it is neither in the group nor bare, and nothing says whose it is. So the disk gets a uuid of our
//! choice, which a tag of the group names from before the first to after the second: what recovery finds
//! in no group under that uuid is to be bare again ([`LvmBackend::finish_passing`]).

use std::path::PathBuf;

use carina_core::exec::Command;
use carina_core::{Error, GroupName, Result};

use crate::argv::{self, Scope};
use crate::backend::LvmBackend;
use crate::groups::Group;
use crate::tags;

impl LvmBackend {
    /// Adds disks that were checked to a group: all of them, or none.
    pub(crate) async fn join(&self, name: &GroupName, group: &Group, what: &str, disks: &[PathBuf]) -> Result<()> {
        let uuids: Vec<String> = disks.iter().map(|_| new_uuid(what)).collect::<Result<_>>()?;
        let notes: Vec<String> = uuids.iter().map(|uuid| tags::joining(uuid)).collect();
        self.regroup(name, |scope| argv::vg_tag(scope, &notes), what).await?;
        let devices = group.devices.iter().chain(disks).cloned().collect();
        let scope = Scope { dialect: self.dialect().await?, group: name.as_str(), devices: &devices };
        let marks = disks.iter().zip(&uuids).map(|(disk, uuid)| argv::pv_create(&scope, disk, uuid));
        let done = self.run_all(what, marks.chain([argv::vg_extend(&scope, disks)])).await;
        let joined = self.claimed(name, disks).await?;
        if let Err(error) = self.regroup(name, |scope| argv::vg_untag(scope, &notes), what).await {
            // Recovery takes it for what it is, whether they have joined or not.
            tracing::warn!("{name} keeps a note of disks that joined it until the next start: {error}");
        }
        match (joined, done) {
            (true, _) => Ok(()),
            (false, Err(error)) => Err(error),
            (false, Ok(())) => Err(Error::Precondition(format!("{what}: LVM has not got them in the group"))),
        }
    }

    /// Runs commands one after another, up to the first that fails.
    async fn run_all(&self, what: &str, commands: impl Iterator<Item = Command> + Send) -> Result<()> {
        for command in commands {
            let output = self.runner().run(&command).await?;
            if !output.success() {
                return Err(output.failure(what, &command, false).into());
            }
        }
        Ok(())
    }
}

/// A uuid for a physical volume. LVM's have 32 letters and digits; these are the kernel's, in hexadecimal.
fn new_uuid(what: &str) -> Result<String> {
    const SOURCE: &str = "/proc/sys/kernel/random/uuid";
    let uuid = std::fs::read_to_string(SOURCE).map_err(|e| Error::io(what, SOURCE, &e))?;
    Ok(uuid.trim().replace('-', ""))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_uuid_is_one_that_lvm_takes() {
        let [one, other] = [(); 2].map(|()| super::new_uuid("x").unwrap());
        assert!(one.len() == 32 && one.bytes().all(|b| b.is_ascii_alphanumeric()), "{one}");
        assert_ne!(one, other);
    }
}
