//! Linear volumes, as the Go Carina made them from 0.11 on: adopted, grown and deleted, never made.
//!
//! No pool stands between such a volume and its extents, so what those held before is zeroed by us: when
//! the volume is deleted, and before it grows over them.

use carina_core::{Bytes, Error, Result, SizeRange, Volume};

use crate::argv;
use crate::backend::LvmBackend;
use crate::tags;
use crate::volumes::{Place, failure, larger_already, not_found};

impl LvmBackend {
    /// Grows a linear volume. The extents that it gets are taken, zeroed and given to it in that order, so
    /// that it never shows what another wrote; a cut before the last step leaves space that the next start
    /// frees.
    pub(crate) async fn expand_linear(&self, place: &Place, size: SizeRange) -> Result<Volume> {
        let Place { name, group, volume: ours } = place;
        let id = &ours.id;
        let now = ours.size.unwrap_or_default();
        if now >= size.required() {
            let whole = place.volume().ok_or_else(|| not_found(id))?;
            return if size.contains(now) { Ok(whole) } else { Err(larger_already(id, now, size)) };
        }
        let figures = self.device_group(name, group).await?;
        let to = size.in_extents(figures.extent)?;
        let what = format!("grow {id} in {name} to {to}");
        figures.admit_linear_growth(now, to)?;
        let part = format!("grow-{}", id.suffix().unwrap_or(id.as_str()));
        if group.layout().volumes.contains_key(&part) {
            self.start_wipes().await?;
            return Err(Error::Busy(format!(
                "{what}: the space of an earlier growth ({name}/{part}) is being zeroed; try again"
            )));
        }
        let dialect = self.dialect().await?;
        let command = argv::create_part(&group.scope(dialect), &part, to.saturating_sub(now));
        let output = self.runner().run(&command).await?;
        if !output.success() {
            return Err(failure(&what, &command, &output, name, to));
        }
        let grown = async {
            self.zero(name, &part).await?;
            let group = self.group(name).await?;
            let command = argv::extents(&group.scope(dialect), &part);
            let output = self.runner().run(&command).await?;
            let extents = String::from_utf8_lossy(&output.stdout).into_owned();
            let extents: Vec<&str> = extents.split_whitespace().collect();
            if !output.success() || extents.is_empty() {
                return Err(output.failure(&what, &command, true).into());
            }
            self.remove_wiped(name, &part).await?;
            let command = argv::extend_onto(&group.scope(dialect), id, to, &extents);
            let output = self.runner().run(&command).await?;
            if output.success() { Ok(()) } else { Err(failure(&what, &command, &output, name, to)) }
        };
        if let Err(error) = grown.await {
            self.start_wipes().await?;
            return Err(error);
        }
        match self.whole(id).await?.volume() {
            Some(volume) if volume.size >= to => Ok(volume),
            _ => Err(Error::Unhealthy(format!(
                "{what}: LVM reported success and did not grow it; look at `lvs -a {name}`"
            ))),
        }
    }

    /// Begins the end of a linear volume: from here on it isn't one. Its space is free once it is zeroed.
    pub(crate) async fn delete_linear(&self, place: &Place) -> Result<()> {
        let Place { name, group, volume: ours } = place;
        let id = &ours.id;
        let what = format!("delete {id} in {name}");
        let scope = group.scope(self.dialect().await?);
        let command = argv::retag(&scope, id.as_str(), std::iter::empty(), Some(tags::WIPING));
        let output = self.runner().run(&command).await?;
        if !output.success() {
            return Err(failure(&what, &command, &output, name, Bytes::ZERO));
        }
        self.start_wipes().await
    }
}
