//! Volumes: made, grown, deleted, and full of what tells one block of one volume from every other.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use carina_core::{Bytes, Health, SizeRange, VolumeBackend, VolumeName, VolumeRequest};
use nix::fcntl::OFlag;

use crate::{Operation, Outcome, Soak, Verb, group, say};

/// What is written and compared at a time.
const PIECE: usize = 1 << 20;
/// Each of these has its own content.
const BLOCK: usize = 4096;

impl Soak {
    pub(crate) async fn create(&mut self, name: &str, size: Bytes) -> Outcome<()> {
        let request = VolumeRequest::new(name.parse()?, SizeRange::at_least(size)?);
        let volume = self.backend.create(&group(), &request).await?;
        let device = self.backend.attach(&volume.id).await?;
        if std::mem::take(&mut self.aims_at_fill) {
            fill(&device, name, 0, PIECE as u64)?.sync_all()?;
            keep_committing(&device, name)?;
            let file = fill(&device, name, 0, volume.size.get())?;
            say("inside fill")?;
            file.sync_all()?;
        }
        fill(&device, name, 0, volume.size.get())?.sync_all()?;
        self.volumes.insert(name.to_owned(), volume.size);
        Ok(())
    }

    pub(crate) async fn expand(&mut self, name: &str, size: Bytes) -> Outcome<()> {
        let volume = self.backend.find(&name.parse()?).await?.ok_or("a volume to expand is lost")?;
        let volume = self.backend.expand(&volume.id, SizeRange::at_least(size)?).await?;
        let known = self.volumes.insert(name.to_owned(), volume.size).unwrap_or_default();
        fill(&self.backend.attach(&volume.id).await?, name, known.get(), volume.size.get())?.sync_all()?;
        Ok(())
    }

    pub(crate) async fn delete(&mut self, name: &str) -> Outcome<()> {
        if let Some(volume) = self.backend.find(&name.parse()?).await? {
            self.backend.delete(&volume.id).await?;
        }
        self.volumes.remove(name);
        Ok(())
    }

    /// Whether every acknowledged volume is there, healthy, of its size and with its data, and no other is.
    pub(crate) async fn check_volumes(&self, in_flight: Option<&Operation>) -> Outcome<()> {
        for (name, size) in &self.volumes {
            let doubt = in_flight.filter(|operation| operation.name == *name);
            let found = self.backend.find(&name.parse::<VolumeName>()?).await?;
            let Some(volume) = found else {
                if doubt.is_some_and(|operation| operation.verb == Verb::Delete) {
                    continue;
                }
                return Err(format!("the acknowledged volume {name} is lost").into());
            };
            let grown = doubt.is_some_and(|operation| operation.verb == Verb::Expand && volume.size == operation.size);
            if volume.health != Health::Ok || (volume.size != *size && !grown) {
                return Err(format!("{name} is {} with {}, not {size}", volume.health, volume.size).into());
            }
            compare(&self.backend.attach(&volume.id).await?, name, size.get())?;
        }
        for volume in self.backend.list().await? {
            let name = volume.name.as_str();
            let known = self.volumes.contains_key(name) || in_flight.is_some_and(|operation| operation.name == name);
            if !known {
                return Err(format!("{name} is there, and nobody asked for it").into());
            }
        }
        Ok(())
    }
}

/// What the volume of a name holds, a piece at a time: each block has the name all over, and its place at
/// its beginning. Copied rather than made, byte by byte: the guest is slow.
struct Content {
    piece: Vec<u8>,
}

impl Content {
    fn new(name: &str) -> Self {
        let block: Vec<u8> = name.bytes().chain([b';']).cycle().take(BLOCK).collect();
        Self { piece: block.repeat(PIECE / BLOCK) }
    }

    fn at(&mut self, at: u64) -> &[u8] {
        for (n, block) in self.piece.chunks_exact_mut(BLOCK).enumerate() {
            let place = at + (n * BLOCK) as u64;
            block[..8].copy_from_slice(&place.to_le_bytes());
        }
        &self.piece
    }
}

/// Has the pool commit its metadata again and again, by writes that its volume is told to keep.
fn keep_committing(device: &Path, name: &str) -> io::Result<()> {
    let flags = OFlag::O_DIRECT | OFlag::O_DSYNC;
    let file = OpenOptions::new().write(true).custom_flags(flags.bits()).open(device)?;
    let mut buffer = vec![0; 2 * BLOCK];
    let skew = buffer.as_ptr().align_offset(BLOCK);
    let block = buffer.get_mut(skew..skew + BLOCK).ok_or(io::ErrorKind::InvalidInput)?;
    block.copy_from_slice(&Content::new(name).at(0)[..BLOCK]);
    thread::spawn(move || while file.write_all_at(&buffer[skew..skew + BLOCK], 0).is_ok() {});
    Ok(())
}

/// Gives a part of a volume its content, which is on its way then.
fn fill(device: &Path, name: &str, from: u64, to: u64) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).open(device)?;
    file.seek(SeekFrom::Start(from))?;
    let mut content = Content::new(name);
    for at in (from..to).step_by(PIECE) {
        file.write_all(content.at(at))?;
    }
    Ok(file)
}

fn compare(device: &Path, name: &str, size: u64) -> Outcome<()> {
    let mut file = File::open(device)?;
    let (mut content, mut piece) = (Content::new(name), vec![0; PIECE]);
    for at in (0..size).step_by(PIECE) {
        file.read_exact(&mut piece)?;
        if piece != content.at(at) {
            return Err(format!("the data of {name} is lost in the MiB at {at}").into());
        }
    }
    Ok(())
}
