//! What a machine's disks are plugged into, before it starts and while it runs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::disk::{Disk, DiskSpec, Place, prepare_image};
use crate::error::{Context, Error, Result};
use crate::qmp::Qmp;

/// Free PCI ports of a machine, for disks that come while it runs.
const SPARE_PORTS: usize = 4;

/// How long a guest may take to let go of a disk.
const LET_GO: Duration = Duration::from_secs(30);

/// The disks of a machine, and the room for more.
#[derive(Debug)]
pub struct Backplane {
    folder: PathBuf,
    disks: Vec<Disk>,
    ports: Vec<String>,
    free_ports: Vec<String>,
    free_ids: Vec<u8>,
}

impl Backplane {
    /// An empty one, with its image files in `folder`.
    pub fn new(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).context(format_args!("making {}", folder.display()))?;
        // QEMU opens the files from a folder of its own.
        let folder = folder.canonicalize().context(format_args!("looking up {}", folder.display()))?;
        let ports: Vec<String> = (0..SPARE_PORTS).map(|port| format!("spare{port}")).collect();
        Ok(Self {
            folder,
            disks: Vec::new(),
            free_ports: ports.iter().rev().cloned().collect(),
            ports,
            // The last is taken first: ids rise from 1.
            free_ids: (1..=250).rev().collect(),
        })
    }

    /// The disks there are.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Adds a disk before the machine starts; the first is `disk0`.
    pub fn add(&mut self, spec: &DiskSpec) -> Result<()> {
        let name = format!("disk{}", self.disks.len());
        if spec.kind.is_pci() {
            let port = format!("port-{name}");
            self.free_ports.push(port.clone());
            self.ports.push(port);
        }
        let disk = self.place(spec, &name)?;
        self.disks.push(disk);
        Ok(())
    }

    /// The command line's part: the buses, the ports and the disks.
    pub fn arguments(&self) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        let mut push = |option: &str, value: Value| {
            arguments.push(option.to_owned());
            arguments.push(value.to_string());
        };
        push("-device", json!({ "driver": "virtio-scsi-pci", "id": "scsi" }));
        for (index, port) in self.ports.iter().enumerate() {
            push("-device", json!({ "driver": "pcie-root-port", "id": port, "chassis": index + 1, "slot": index + 1 }));
        }
        for disk in &self.disks {
            push("-blockdev", disk.blockdev()?);
            push("-device", disk.device());
        }
        Ok(arguments)
    }

    /// Plugs a disk into the running machine. A disk of this name that was
    /// there before comes back with its data.
    pub fn plug(&mut self, qmp: &mut Qmp, spec: &DiskSpec, name: &str) -> Result<()> {
        let disk = self.place(spec, name)?;
        let plugged = qmp.execute("blockdev-add", disk.blockdev()?).and_then(|_| {
            qmp.execute("device_add", disk.device()).inspect_err(|_| {
                // The first error is the one to tell.
                let _ = qmp.execute("blockdev-del", json!({ "node-name": disk.node() }));
            })
        });
        if let Err(error) = plugged {
            self.free(disk.place);
            return Err(error);
        }
        self.disks.push(disk);
        Ok(())
    }

    /// Pulls a disk out of the running machine; its image stays.
    pub fn yank(&mut self, qmp: &mut Qmp, name: &str) -> Result<()> {
        let index = self
            .disks
            .iter()
            .position(|disk| disk.name == name)
            .context(format_args!("the machine has no disk {name}"))?;
        qmp.forget_events();
        qmp.execute("device_del", json!({ "id": name }))?;
        qmp.wait_for(LET_GO, |event| event.name == "DEVICE_DELETED" && event.data["device"] == name)
            .context(format_args!("the guest does not let go of {name}"))?;
        let disk = self.disks.remove(index);
        qmp.execute("blockdev-del", json!({ "node-name": disk.node() }))?;
        self.free(disk.place);
        Ok(())
    }

    /// Makes a disk of the running machine larger, in bytes; disks on the SCSI bus show it when the guest
    /// looks again.
    pub fn grow(&mut self, qmp: &mut Qmp, name: &str, size: u64) -> Result<()> {
        let disk = self.disks.iter().find(|disk| disk.name == name);
        let disk = disk.context(format_args!("the machine has no disk {name}"))?;
        qmp.execute("block_resize", json!({ "node-name": disk.node(), "size": size })).map(drop)
    }

    fn place(&mut self, spec: &DiskSpec, name: &str) -> Result<Disk> {
        check_name(name)?;
        if self.disks.iter().any(|disk| disk.name == name) {
            return Err(Error::new(format!("the machine has a disk {name} already")));
        }
        let file = match &spec.file {
            Some(file) => std::path::absolute(file).context(format_args!("the path {}", file.display()))?,
            None => self.folder.join(format!("{name}.img")),
        };
        prepare_image(&file, spec.size)?;
        let place = if spec.kind.is_pci() {
            Place::Port(self.free_ports.pop().context("no free PCI port")?)
        } else {
            Place::Scsi(self.free_ids.pop().context("no free SCSI id")?)
        };
        Ok(Disk { name: name.to_owned(), kind: spec.kind, file, place })
    }

    fn free(&mut self, place: Place) {
        match place {
            Place::Scsi(id) => self.free_ids.push(id),
            Place::Port(port) => self.free_ports.push(port),
        }
    }
}

/// A name is a file's, an id of QEMU and a serial number.
fn check_name(name: &str) -> Result<()> {
    let first = name.chars().next();
    if first.is_some_and(|c| c.is_ascii_alphabetic())
        && name.len() <= 20
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    {
        return Ok(());
    }
    Err(Error::new(format!("`{name}` is no name for a disk: a letter, then letters, digits and hyphens, at most 20")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_has_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let mut backplane = Backplane::new(folder.path().join("disks")).unwrap();
        for disk in ["ssd:1M", "nvme:1M", "hdd:2T"] {
            backplane.add(&disk.parse().unwrap()).unwrap();
        }
        let places: Vec<&Place> = backplane.disks().iter().map(|disk| &disk.place).collect();
        assert_eq!(places, [&Place::Scsi(1), &Place::Port("port-disk1".into()), &Place::Scsi(2)]);
        assert!(folder.path().join("disks/disk2.img").exists());
        let arguments = backplane.arguments().unwrap().join("\n");
        assert!(arguments.contains("spare3"));
        assert!(!arguments.contains("null"));
    }

    #[test]
    fn a_disk_has_a_plain_name() {
        assert!(check_name("spare-1").is_ok());
        for name in ["", "1st", "../x", "a b", "a-name-that-is-too-long"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
