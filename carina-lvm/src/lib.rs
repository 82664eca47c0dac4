//! Carina volumes on LVM2.
//!
//! Each volume is a thin pool `thin-<pv>` with one thin volume `volume-<pv>` in it, both of the volume's
//! size, in a volume group of bare disks: what `pvs`, `vgs` and `lvs` show is what operators of Carina
//! know. Changes go through LVM's own commands: one process for a create or a delete, two at most for an
//! expansion. Reading costs none: the layout is kept, and read again from the disks' own metadata when
//! its header says that it changed.
//!
//! Volumes of the Go Carina (thin ones of the same layout, and linear ones) are adopted once the cluster
//! names them.
//!
//! State lives on the disks alone. The tags of a group and of a pool say that Carina made them, and are the
//! record of the volume; what lacks the tag is never touched. [`LvmBackend`] is the door.

mod adopt;
mod argv;
mod backend;
mod changes;
mod claim;
mod config_text;
mod dm;
mod drain;
mod figures;
mod groups;
mod header;
mod join;
mod layout;
mod linear;
mod members;
mod mend;
mod names;
mod reclaim;
mod recover;
mod release;
mod report;
mod revive;
mod sights;
mod tags;
mod text;
mod volumes;
mod wipe;
mod zero;

pub use backend::{LvmBackend, LvmConfig};
