//! `cargo xtask vm`: runs a command in a virtual machine.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use crate::accel::Choice;
use crate::disk::{DiskSpec, parse_disks};
use crate::error::{Context, Error, Result};
use crate::image::Image;
use crate::machine::{Builder, Ending, Machine, guest_name, quote};
use crate::packages;
use crate::quantity::{parse_duration, parse_size};

/// The exit code if the guest's command has none: it died, or ran out of time.
const NO_EXIT_CODE: u8 = 125;

/// What the machine is made of and what it runs.
#[derive(Debug, Args)]
#[command(after_help = "\
In the guest, /dev/disk/vm/disk0 is the first disk, whatever its sdX name; its serial number is disk0.
`vm-host plug KIND:SIZE NAME`, `vm-host yank NAME` and `vm-host grow NAME SIZE` plug, pull and grow disks from within,
`echo b >/proc/sysrq-trigger` cuts the power. What the command leaves in /guest/out goes to --output.
Kernel argument vm.cgroup=1 mounts the v1 block I/O controller instead of cgroup v2.
The exit code is the command's own, or 125 if the guest died or ran out of time.")]
pub struct Vm {
    /// Disks, comma-separated: ssd:20G,hdd:20G,nvme:20G,virtio:2T.
    #[arg(long, value_name = "DISKS", default_value = "")]
    disks: String,
    /// One more disk; may be repeated.
    #[arg(long = "disk", value_name = "KIND:SIZE")]
    more_disks: Vec<DiskSpec>,
    /// Keep the disks' images in this folder, for the next boot.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// The guest's memory.
    #[arg(long, default_value = "1G", value_parser = parse_size)]
    memory: u64,
    /// The guest's processors.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Copy this file, with its shared libraries, to /guest; may be repeated.
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Take this program of the host along, installing the package of its name
    /// if it is missing (fio, strace); may be repeated.
    #[arg(long = "tool", value_name = "NAME")]
    tools: Vec<String>,
    /// Cut the power if the whole run takes longer.
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    timeout: Duration,
    /// What runs the guest.
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    accel: Choice,
    /// Cut the power this long after the command has started.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    kill_after: Option<Duration>,
    /// Offer QEMU's machine protocol on this socket.
    #[arg(long, value_name = "SOCKET")]
    qmp: Option<PathBuf>,
    /// Run udevd in the guest.
    #[arg(long)]
    udev: bool,
    /// More arguments for the guest's kernel.
    #[arg(long, value_name = "ARGS", default_value = "")]
    append: String,
    /// Put the guest's /guest/out and its console's log here.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// What to run: one word is a script for bash, several are a program and
    /// its arguments. A first word that is a file here is copied to /guest.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Vm {
    /// Runs the command and returns its exit code.
    pub fn run(self) -> Result<u8> {
        let image = Image::ensure()?;
        let tools: Vec<&str> = self.tools.iter().map(String::as_str).collect();
        packages::ensure(&tools)?;
        let accelerator = self.accel.resolve(&image)?;
        let started = Instant::now();
        let mut machine = self.builder(Machine::builder(&image, accelerator))?.boot()?;
        if let Some(after) = self.kill_after
            && machine.wait_started(self.timeout)
        {
            let cut_at = started.elapsed() + after;
            if machine.wait_ended(after) {
                eprintln!("xtask: the command ended before the power was cut");
            } else {
                machine.kill();
                eprintln!("xtask: cut the power after {:.1} s", cut_at.as_secs_f64());
            }
        }
        match machine.wait(self.timeout)? {
            Ending::Exit(code) => u8::try_from(code).context(format_args!("the guest's exit code {code}")),
            Ending::Cut => Ok(NO_EXIT_CODE),
            ending @ (Ending::Died | Ending::TimedOut) => {
                let what = match ending {
                    Ending::TimedOut => "ran out of time",
                    _ => "died",
                };
                eprintln!(
                    "xtask: the guest {what} after {:.1} s; the last lines of its console:\n{}",
                    started.elapsed().as_secs_f64(),
                    machine.last_words()
                );
                Ok(NO_EXIT_CODE)
            }
        }
    }

    fn builder<'a>(&self, mut builder: Builder<'a>) -> Result<Builder<'a>> {
        let disks = parse_disks(&self.disks)?;
        for disk in disks.iter().chain(&self.more_disks) {
            builder = builder.disk(disk.clone());
        }
        if let Some(folder) = &self.keep {
            builder = builder.disk_folder(folder);
        }
        for file in &self.files {
            builder = builder.file(file)?;
        }
        for tool in &self.tools {
            builder = builder.tool(tool)?;
        }
        let (first, arguments) = self.command.split_first().ok_or_else(|| Error::new("no command"))?;
        let script = if Path::new(first).is_file() {
            builder = builder.file(Path::new(first))?;
            let program = format!("/guest/{}", guest_name(Path::new(first))?);
            let words = std::iter::once(program.as_str());
            quote(words.chain(arguments.iter().map(String::as_str)))
        } else if arguments.is_empty() {
            first.clone()
        } else {
            quote(self.command.iter().map(String::as_str))
        };
        Ok(builder
            .command(script)
            .memory(self.memory)
            .cpus(self.cpus)
            .append(&self.append)
            .udev(self.udev)
            .monitor(self.qmp.clone())
            .output(self.output.clone()))
    }
}
