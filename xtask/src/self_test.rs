//! `cargo xtask vm-self-test`: proves the test VM itself, since every test on a
//! real kernel rests on it.

use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use clap::Args;

use crate::accel::{Accelerator, Choice};
use crate::disk::parse_disks;
use crate::error::{Context, Error, Result};
use crate::image::Image;
use crate::machine::{Builder, Ending, Machine};
use crate::sink::line_sink;

/// More than a slow machine needs for any of these.
const PATIENCE: Duration = Duration::from_secs(180);

/// What to test the VM with.
#[derive(Debug, Args)]
pub struct SelfTest {
    /// What runs the guest.
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    accel: Choice,
}

impl SelfTest {
    /// Tests with this accelerator.
    pub fn new(accel: Choice) -> Self {
        Self { accel }
    }

    /// Runs every test; the exit code says whether all passed.
    pub fn run(self) -> Result<u8> {
        let image = Image::ensure()?;
        let lab = Lab { accelerator: self.accel.resolve(&image)?, image };
        let tests: [(&str, Test); 7] = [
            ("output and exit codes pass through", Lab::exit_codes),
            ("a guest that dies is told from one that fails", Lab::death),
            ("a wedged guest is ended in time", Lab::timeout),
            ("disks are of the kind and size asked for", Lab::kinds),
            ("a thin pool on kept disks is there in the next boot", Lab::keep),
            ("what was written before a power cut is there after it", Lab::cut),
            ("disks come and go", Lab::plug),
        ];
        let mut failed = 0;
        for (name, test) in tests {
            let started = Instant::now();
            let result = test(&lab);
            let seconds = started.elapsed().as_secs_f64();
            match result {
                Ok(()) => println!("vm: {name} ... ok ({seconds:.1} s)"),
                Err(error) => {
                    failed += 1;
                    println!("vm: {name} ... FAILED ({seconds:.1} s)\n{error}");
                }
            }
        }
        Ok(u8::from(failed > 0))
    }
}

type Test = fn(&Lab) -> Result<()>;

struct Lab {
    image: Image,
    accelerator: Accelerator,
}

impl Lab {
    /// A machine that runs `script`, and the lines that it prints.
    fn machine(&self, disks: &str, script: &str) -> Result<(Builder<'_>, Receiver<String>)> {
        let (sender, lines) = mpsc::channel();
        let mut builder = Machine::builder(&self.image, self.accelerator)
            .command(script)
            .stdout(line_sink(sender))
            .stderr(Box::new(io::stderr()));
        for disk in parse_disks(disks)? {
            builder = builder.disk(disk);
        }
        Ok((builder, lines))
    }

    /// Runs `script` to its end and returns what it printed.
    fn output(&self, disks: &str, folder: Option<&Path>, script: &str) -> Result<String> {
        let (mut builder, lines) = self.machine(disks, &format!("set -e\n{script}"))?;
        if let Some(folder) = folder {
            builder = builder.disk_folder(folder);
        }
        let mut machine = builder.boot()?;
        expect(&mut machine, PATIENCE, Ending::Exit(0))?;
        let lines: Vec<String> = lines.iter().collect();
        Ok(lines.join("\n"))
    }

    fn exit_codes(&self) -> Result<()> {
        let started = Instant::now();
        let (errors, error_lines) = mpsc::channel();
        let (builder, lines) = self.machine("", "echo out; echo err >&2; exit 3")?;
        let mut machine = builder.stderr(line_sink(errors)).boot()?;
        expect(&mut machine, PATIENCE, Ending::Exit(3))?;
        same(&lines.iter().collect::<Vec<_>>().join("\n"), "out")?;
        same(&error_lines.iter().collect::<Vec<_>>().join("\n"), "err")?;
        println!("vm: from launch to exit code in {:.1} s", started.elapsed().as_secs_f64());
        same(&self.output("", None, "true")?, "")
    }

    fn death(&self) -> Result<()> {
        let (builder, _lines) = self.machine("", "echo c >/proc/sysrq-trigger; sleep 60")?;
        let mut machine = builder.boot()?;
        expect(&mut machine, PATIENCE, Ending::Died)?;
        if machine.last_words().contains("Kernel panic") {
            return Ok(());
        }
        Err(Error::new("the console does not say why the guest died"))
    }

    fn timeout(&self) -> Result<()> {
        let (builder, _lines) = self.machine("", "sleep 600")?;
        let mut machine = builder.boot()?;
        if !machine.wait_started(PATIENCE) {
            return Err(Error::new("the command did not start"));
        }
        // Counted from the boot on, so it is over already.
        expect(&mut machine, Duration::from_secs(1), Ending::TimedOut)
    }

    fn kinds(&self) -> Result<()> {
        let script = "for disk in /dev/disk/vm/*; do
            block=$(basename $(readlink $disk))
            echo ${disk##*/} ${block:0:2} $(cat /sys/block/$block/queue/rotational) $(blockdev --getsize64 $disk)
        done";
        same(
            &self.output("ssd:20G,hdd:2T,nvme:512M,virtio:1G", None, script)?,
            "disk0 sd 0 21474836480\ndisk1 sd 1 2199023255552\n\
             disk2 nv 0 536870912\ndisk3 vd 1 1073741824",
        )
    }

    fn keep(&self) -> Result<()> {
        let folder = tempfile::tempdir_in(&self.image.cache).context("a folder for the disks")?;
        let disks = "ssd:20G,ssd:20G,hdd:20G,hdd:20G";
        let make = "exec 2>&1
            vgcreate -q vg /dev/disk/vm/disk[0-3]
            lvcreate -q --type thin -n volume-a -V 1G -L 1G --thinpool thin-a vg
            mkfs.xfs -q /dev/vg/volume-a; mount /dev/vg/volume-a /mnt
            echo kept >/mnt/file; umount /mnt
            vgs --noheadings -o pv_count,lv_count vg | xargs";
        let made = self.output(disks, Some(folder.path()), make)?;
        same(made.lines().last().unwrap_or_default(), "4 2")?;
        let find = "vgchange -q -ay vg >/dev/null; mount /dev/vg/volume-a /mnt; cat /mnt/file";
        same(&self.output(disks, Some(folder.path()), find)?, "kept")
    }

    fn cut(&self) -> Result<()> {
        let folder = tempfile::tempdir_in(&self.image.cache).context("a folder for the disks")?;
        let write = "for ((n = 1; ; n++)); do
            printf '%07d\\n' $n | dd of=/dev/disk/vm/disk0 bs=512 seek=$n conv=sync oflag=direct status=none
            echo $n
        done";
        let (builder, lines) = self.machine("ssd:1G", write)?;
        let mut machine = builder.disk_folder(folder.path()).boot()?;
        let mut last = 0;
        while last < 20 {
            let line = lines.recv_timeout(PATIENCE).context("waiting for the guest to write")?;
            last = line.parse::<u32>().context("the guest's line")?;
        }
        machine.kill();
        expect(&mut machine, PATIENCE, Ending::Cut)?;
        if let Some(line) = lines.iter().last() {
            last = line.parse().context("the guest's line")?;
        }
        let read = format!("dd if=/dev/disk/vm/disk0 bs=512 skip={last} count=1 status=none | head -n 1");
        same(&self.output("ssd:1G", Some(folder.path()), &read)?, &format!("{last:07}"))
    }

    fn plug(&self) -> Result<()> {
        // The kernel's own view, then the same by the guest's request.
        let script = "
            serial() { cat /sys/block/sd*/device/vpd_pg80 2>/dev/null | tr -d '\\0'; }
            until serial | grep -q late; do sleep 0.1; done; echo came
            while serial | grep -q late; do sleep 0.1; done; echo went
            for kind in ssd nvme virtio; do
                vm-host plug $kind:20G more && echo more >/dev/disk/vm/more && vm-host yank more || exit 1
                vm-host plug $kind:20G more && head -n 1 /dev/disk/vm/more && vm-host yank more || exit 1
            done
            vm-host yank disk0 && vm-host yank disk1 && [[ ! -e /dev/disk/vm/disk1 ]] && echo bare
            vm-host yank never || echo refused";
        let (builder, lines) = self.machine("hdd:1G,nvme:1G", script)?;
        let mut machine = builder.boot()?;
        if !machine.wait_started(PATIENCE) {
            return Err(Error::new("the command did not start"));
        }
        let next = || lines.recv_timeout(PATIENCE).context("waiting for the guest");
        machine.plug(&"ssd:20G".parse()?, "late")?;
        same(&next()?, "came")?;
        machine.yank("late")?;
        same(&next()?, "went")?;
        expect(&mut machine, PATIENCE, Ending::Exit(0))?;
        same(&lines.iter().collect::<Vec<_>>().join(" "), "more more more bare refused")
    }
}

fn expect(machine: &mut Machine, timeout: Duration, wanted: Ending) -> Result<()> {
    let ending = machine.wait(timeout)?;
    if ending == wanted {
        return Ok(());
    }
    Err(Error::new(format!("the machine ended with {ending:?} instead of {wanted:?}\n{}", machine.last_words())))
}

fn same(is: &str, wanted: &str) -> Result<()> {
    if is == wanted {
        return Ok(());
    }
    Err(Error::new(format!("got {is:?} instead of {wanted:?}")))
}
