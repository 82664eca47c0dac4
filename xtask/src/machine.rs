//! A virtual machine that runs one command: boot it, watch it, plug and yank
//! its disks, cut its power, and learn how it ended.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::accel::Accelerator;
use crate::archive::{self, Archive};
use crate::backplane::Backplane;
use crate::disk::DiskSpec;
use crate::error::{Context, Error, Result};
use crate::image::{Image, add_udev, find_program};
use crate::process::{CONNECT, Line, Process, Shared, State, lock};
use crate::qmp::Qmp;
use crate::run_folder::RunFolder;
use crate::sink::Sink;

/// How long a guest may take to power off once its command has ended.
const POWER_OFF: Duration = Duration::from_secs(60);

/// How many lines of a console are worth showing: a kernel's panic is long.
const LAST_WORDS: usize = 60;

/// Files beyond this size lose their debug information on the way into the guest.
const STRIP_ABOVE: u64 = 4 << 20;

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The command ended with this code.
    Exit(i32),
    /// The guest died before its command ended.
    Died,
    /// The time was up.
    TimedOut,
    /// [`Machine::kill`] cut the power.
    Cut,
}

/// A machine that is not running yet.
pub struct Builder<'a> {
    image: &'a Image,
    accelerator: Accelerator,
    disks: Vec<DiskSpec>,
    disk_folder: Option<PathBuf>,
    memory: u64,
    cpus: u32,
    files: Vec<(PathBuf, String)>,
    command: String,
    append: String,
    udev: bool,
    monitor: Option<PathBuf>,
    output: Option<PathBuf>,
    stdout: Sink,
    stderr: Sink,
}

impl<'a> Builder<'a> {
    /// Adds a disk: the first is `disk0`.
    pub fn disk(mut self, spec: DiskSpec) -> Self {
        self.disks.push(spec);
        self
    }

    /// Keeps the disks' images in this folder, and takes those it has.
    pub fn disk_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.disk_folder = Some(folder.into());
        self
    }

    /// The guest's memory in bytes.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// The guest's processors.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Copies a file with its shared libraries to `/guest`.
    pub fn file(self, host: &Path) -> Result<Self> {
        let name = guest_name(host)?;
        Ok(self.file_as(host, &format!("guest/{name}")))
    }

    /// Copies a file with its shared libraries to this path of the guest.
    pub fn file_as(mut self, host: &Path, guest: &str) -> Self {
        self.files.push((host.to_owned(), guest.to_owned()));
        self
    }

    /// Copies a program of the host to where the guest finds it too.
    pub fn tool(self, name: &str) -> Result<Self> {
        let program = find_program(name)?;
        Ok(self.file_as(&program, &format!("usr/bin/{name}")))
    }

    /// What to run: a script for bash.
    pub fn command(mut self, script: impl Into<String>) -> Self {
        self.command = script.into();
        self
    }

    /// More of the kernel's command line.
    pub fn append(mut self, arguments: &str) -> Self {
        self.append.push(' ');
        self.append.push_str(arguments);
        self
    }

    /// Runs the guest with udevd; LVM is slower then.
    pub fn udev(mut self, udev: bool) -> Self {
        self.udev = udev;
        self
    }

    /// Offers QEMU's machine protocol to others on this socket.
    pub fn monitor(mut self, socket: Option<PathBuf>) -> Self {
        self.monitor = socket;
        self
    }

    /// Puts what the command leaves in `/guest/out`, and the console's log,
    /// into this folder.
    pub fn output(mut self, folder: Option<PathBuf>) -> Self {
        self.output = folder;
        self
    }

    /// Where the command's output goes, instead of our own.
    pub fn stdout(mut self, sink: Sink) -> Self {
        self.stdout = sink;
        self
    }

    /// Where the command's errors go, instead of our own.
    pub fn stderr(mut self, sink: Sink) -> Self {
        self.stderr = sink;
        self
    }

    /// Starts the machine.
    pub fn boot(self) -> Result<Machine> {
        let folder = RunFolder::new(&self.image.cache)?;
        // A socket's path is short; that of a target folder may not be.
        let sockets = tempfile::Builder::new().prefix("vm-").tempdir().context("making a folder for the sockets")?;
        let listen = |name: &'static str| Line::listen(sockets.path(), name);
        let lines = [listen("control")?, listen("out")?, listen("err")?, listen("host")?, listen("qmp")?];

        let disk_folder = match &self.disk_folder {
            Some(folder) => folder.clone(),
            None => folder.path().join("disks"),
        };
        let mut backplane = Backplane::new(disk_folder)?;
        for spec in &self.disks {
            backplane.add(spec)?;
        }
        let initrd = folder.path().join("initrd");
        self.write_initrd(folder.path(), &initrd)?;
        let arguments = self.arguments(&folder, &lines, &backplane, &initrd)?;

        let log = File::create(folder.log()).context("making QEMU's log")?;
        let mut qemu = Command::new("setpriv");
        // QEMU ends with us, however we end.
        qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("QEMU's log")?)
            .stderr(log);
        let shared = Arc::new(Shared::default());
        let mut machine = Machine {
            process: Process::start(qemu, &shared)?,
            shared,
            backplane: Arc::new(Mutex::new((backplane, None))),
            readers: Vec::new(),
            folder,
            output: self.output,
            booted: Instant::now(),
            cut: false,
        };
        let [control, out, err, host, qmp] = lines;
        let connect = |line: Line| line.accept(&machine.shared).map_err(|error| machine.with_log(error));
        let (control, out, err, host, qmp) =
            (connect(control)?, connect(out)?, connect(err)?, connect(host)?, connect(qmp)?);
        // Connected; the guest does not need the names.
        drop(sockets);
        let qmp = Qmp::new(qmp).map_err(|error| machine.with_log(error))?;
        lock(&machine.backplane).1 = Some(qmp);
        let shared = Arc::clone(&machine.shared);
        machine.readers = vec![
            thread::spawn(move || follow(control, &shared)),
            thread::spawn(move || pass_on(out, self.stdout)),
            thread::spawn(move || pass_on(err, self.stderr)),
        ];
        let backplane = Arc::clone(&machine.backplane);
        machine.readers.push(thread::spawn(move || serve(host, &backplane)));
        // The archive was read before QEMU opened its lines.
        fs::remove_file(initrd).context("removing the run's archive")?;
        Ok(machine)
    }

    /// The base image with this run's files behind it.
    fn write_initrd(&self, folder: &Path, initrd: &Path) -> Result<()> {
        let mut guest = Archive::default();
        guest.text("guest/.command", 0o644, format!("{}\n", self.command));
        let mut programs = Vec::new();
        for (index, (host, path)) in self.files.iter().enumerate() {
            let metadata = fs::metadata(host).context(format_args!("the file {}", host.display()))?;
            if !metadata.is_file() {
                return Err(Error::new(format!("{} is not a file", host.display())));
            }
            if !is_elf(host)? {
                guest.host_file(path, host, 0o755);
                continue;
            }
            programs.push(host.clone());
            let stripped = folder.join(format!("stripped-{index}"));
            if metadata.len() > STRIP_ABOVE && strip(host, &stripped)? {
                guest.host_file(path, &stripped, 0o755);
            } else {
                guest.host_file(path, host, 0o755);
            }
        }
        if self.udev {
            add_udev(&mut guest, &mut programs)?;
        }
        guest.libraries(&programs)?;
        fs::copy(&self.image.base, initrd).context("copying the base image")?;
        let mut out = fs::OpenOptions::new()
            .append(true)
            .open(initrd)
            .map(io::BufWriter::new)
            .context("opening the run's archive")?;
        guest.write(&mut out)?;
        out.flush().context("writing the run's archive")
    }

    fn arguments(
        &self,
        folder: &RunFolder,
        lines: &[Line],
        backplane: &Backplane,
        initrd: &Path,
    ) -> Result<Vec<String>> {
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
        match self.accelerator {
            Accelerator::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
            // An older processor is emulated quicker than the newest.
            Accelerator::Tcg => add(&["-accel", "tcg,thread=multi", "-cpu", "Nehalem"]),
        }
        let mut kernel = String::from("console=ttyS0 quiet panic=-1 tsc=unstable mitigations=off random.trust_cpu=on");
        let _ = write!(kernel, " vm.disks={}", backplane.disks().len());
        if self.udev {
            kernel.push_str(" vm.udev=1");
        }
        kernel.push_str(&self.append);
        add(&["-machine", "q35", "-nodefaults", "-no-user-config", "-no-reboot"]);
        add(&["-display", "none", "-smp", &self.cpus.to_string()]);
        add(&["-m", &format!("{}k", self.memory >> 10)]);
        add(&["-kernel", archive::text(&self.image.kernel)?]);
        add(&["-initrd", archive::text(initrd)?, "-append", &kernel]);
        add(&["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        // A comma in an option's value is written twice.
        let chardev = |kind: &str, name: &str, path: &Path| -> Result<String> {
            let path = archive::text(path)?.replace(',', ",,");
            Ok(format!("{kind},id={name},path={path}"))
        };
        add(&["-chardev", &chardev("file", "console", &folder.console())?]);
        add(&["-serial", "chardev:console"]);
        for line in lines {
            add(&["-chardev", &chardev("socket", line.name, &line.path)?]);
        }
        add(&["-chardev", &chardev("file", "results", &folder.results())?]);
        for name in ["control", "out", "err", "host", "results"] {
            add(&["-device", &format!("virtserialport,chardev={name},name=vm.{name}")]);
        }
        add(&["-mon", "chardev=qmp,mode=control"]);
        if let Some(socket) = &self.monitor {
            let socket = std::path::absolute(socket).context("the monitor's socket")?;
            let server = format!("{},server=on,wait=off", chardev("socket", "monitor", &socket)?);
            add(&["-chardev", &server, "-mon", "chardev=monitor,mode=control"]);
        }
        arguments.extend(backplane.arguments()?);
        Ok(arguments)
    }
}

/// The last part of a path, as a name in the guest.
pub fn guest_name(host: &Path) -> Result<String> {
    let name = host.file_name().context(format_args!("{} is not a file", host.display()))?;
    Ok(archive::text(Path::new(name))?.to_owned())
}

/// Words as one line for a shell, each of them as it is.
pub fn quote<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    let quoted: Vec<String> = words.into_iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
    quoted.join(" ")
}

fn is_elf(path: &Path) -> Result<bool> {
    let mut magic = [0; 4];
    let mut file = File::open(path).context(format_args!("opening {}", path.display()))?;
    Ok(file.read_exact(&mut magic).is_ok() && &magic == b"\x7fELF")
}

/// Whether a copy without debug information could be made; if not, the file
/// goes as it is.
fn strip(host: &Path, stripped: &Path) -> Result<bool> {
    let status = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .args([stripped, host])
        .status()
        .context("strip did not run")?;
    Ok(status.success())
}

/// A running machine. Dropping it cuts its power.
pub struct Machine {
    process: Process,
    shared: Arc<Shared>,
    backplane: Arc<Mutex<(Backplane, Option<Qmp>)>>,
    readers: Vec<JoinHandle<()>>,
    folder: RunFolder,
    output: Option<PathBuf>,
    booted: Instant,
    cut: bool,
}

impl Machine {
    /// A machine to be made from this image.
    pub fn builder(image: &Image, accelerator: Accelerator) -> Builder<'_> {
        Builder {
            image,
            accelerator,
            disks: Vec::new(),
            disk_folder: None,
            memory: 1 << 30,
            cpus: 2,
            files: Vec::new(),
            command: String::from("true"),
            append: String::new(),
            udev: false,
            monitor: None,
            output: None,
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
        }
    }

    /// Waits until the command has started; false if it did not in time, or
    /// the guest died.
    pub fn wait_started(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.wait_until(|state| (state.started || state.gone).then_some(()), |_| deadline);
        lock(&self.shared.state).started
    }

    /// Waits until the command has ended or the guest has died, at most
    /// `timeout` from now on; false if it still runs.
    pub fn wait_ended(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.wait_until(|state| (state.exit.is_some() || state.gone).then_some(()), |_| deadline).is_some()
    }

    /// Waits for the end, at most `timeout` from the boot on; then the power
    /// is cut. After that the machine is over: another call returns the same.
    pub fn wait(&mut self, timeout: Duration) -> Result<Ending> {
        let deadline = self.booted + timeout;
        let ended = self.wait_until(
            |state| state.gone.then_some(()),
            |state| match state.exit {
                Some((_, at)) => at + POWER_OFF,
                None => deadline,
            },
        );
        self.process.kill();
        self.wait_until(|state| state.gone.then_some(()), |_| Instant::now() + CONNECT);
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if let Some(output) = self.output.take() {
            self.save_results(&output)?;
        }
        let exit = lock(&self.shared.state).exit;
        Ok(match exit {
            Some((code, _)) => Ending::Exit(code),
            None if self.cut => Ending::Cut,
            None if ended.is_none() => Ending::TimedOut,
            None => Ending::Died,
        })
    }

    /// Waits for something; none if it was not there by the deadline.
    fn wait_until<T>(&self, look: impl Fn(&State) -> Option<T>, deadline: impl Fn(&State) -> Instant) -> Option<T> {
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(found) = look(&state) {
                return Some(found);
            }
            let left = deadline(&state).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Cuts the power, at once: what the guest has not written to its disks is
    /// lost. [`Machine::wait`] then returns [`Ending::Cut`].
    pub fn kill(&mut self) {
        self.cut = true;
        self.process.kill();
    }

    /// Plugs in a disk; the guest finds it by its name as its serial number.
    pub fn plug(&self, spec: &DiskSpec, name: &str) -> Result<()> {
        plug(&self.backplane, spec, name)
    }

    /// Pulls out a disk. Its image stays where it is.
    pub fn yank(&self, name: &str) -> Result<()> {
        yank(&self.backplane, name)
    }

    /// The last lines on the guest's console, and what QEMU had to say.
    pub fn last_words(&self) -> String {
        let mut words = String::new();
        for path in [self.folder.log(), self.folder.console()] {
            let bytes = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(LAST_WORDS)..] {
                words.push_str(line.trim_end());
                words.push('\n');
            }
        }
        words
    }

    /// An error with QEMU's own words.
    fn with_log(&self, error: Error) -> Error {
        Error::new(format!("{error}\n{}", self.last_words()))
    }

    fn save_results(&self, output: &Path) -> Result<()> {
        fs::create_dir_all(output).context(format_args!("making {}", output.display()))?;
        fs::copy(self.folder.console(), output.join("console.log")).context("saving the console's log")?;
        let results = self.folder.results();
        if fs::metadata(&results).is_ok_and(|metadata| metadata.len() > 0) {
            let status = Command::new("tar")
                .arg("-C")
                .arg(output)
                .arg("-xf")
                .arg(&results)
                .status()
                .context("tar did not run")?;
            if !status.success() {
                return Err(Error::new("the guest's results are not whole"));
            }
        }
        Ok(())
    }
}

type SharedBackplane = Mutex<(Backplane, Option<Qmp>)>;

fn plug(backplane: &SharedBackplane, spec: &DiskSpec, name: &str) -> Result<()> {
    let (backplane, qmp) = &mut *lock(backplane);
    backplane.plug(qmp.as_mut().context("the machine is not up yet")?, spec, name)
}

fn yank(backplane: &SharedBackplane, name: &str) -> Result<()> {
    let (backplane, qmp) = &mut *lock(backplane);
    backplane.yank(qmp.as_mut().context("the machine is not up yet")?, name)
}

fn grow(backplane: &SharedBackplane, name: &str, size: &str) -> Result<()> {
    let gib: u64 = size.trim_end_matches('G').parse().context(format_args!("`{size}` is no size in GiB"))?;
    let (backplane, qmp) = &mut *lock(backplane);
    backplane.grow(qmp.as_mut().context("the machine is not up yet")?, name, gib.saturating_mul(1 << 30))
}

/// Learns from the guest's init that the command has started and ended.
fn follow(control: UnixStream, shared: &Shared) {
    for line in BufReader::new(control).lines() {
        let Ok(line) = line else { return };
        match parse_control(&line) {
            Some(Control::Started) => shared.change(|state| state.started = true),
            Some(Control::Exit(code)) => {
                shared.change(|state| state.exit = Some((code, Instant::now())));
            }
            None => eprintln!("xtask: the guest's init says: {line}"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Control {
    Started,
    Exit(i32),
}

fn parse_control(line: &str) -> Option<Control> {
    match line.split_once(' ') {
        None => (line == "started").then_some(Control::Started),
        Some(("exit", code)) => code.parse().ok().map(Control::Exit),
        Some(_) => None,
    }
}

fn pass_on(mut from: UnixStream, mut to: Sink) {
    let mut buffer = [0; 8192];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                // The guest goes on even if nobody reads its output any more.
                let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Does what a command in the guest asks for by `vm-host`.
fn serve(host: UnixStream, backplane: &SharedBackplane) {
    let Ok(mut answers) = host.try_clone() else {
        return;
    };
    for line in BufReader::new(host).lines() {
        let Ok(line) = line else { return };
        let words: Vec<&str> = line.split_whitespace().collect();
        let done = match words.as_slice() {
            ["plug", spec, name] => spec.parse().and_then(|spec: DiskSpec| plug(backplane, &spec, name)),
            ["yank", name] => yank(backplane, name),
            ["grow", name, size] => grow(backplane, name, size),
            _ => Err(Error::new(format!("`{line}` is nothing a host can do"))),
        };
        let answer = match done {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string().replace('\n', " "),
        };
        if writeln!(answers, "{answer}").is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words_in_a_shell() {
        assert_eq!(quote(["lvs", "-o", "a b"]), "'lvs' '-o' 'a b'");
        assert_eq!(quote(["it's $HOME"]), r"'it'\''s $HOME'");
    }

    #[test]
    fn init_reports_start_and_exit() {
        assert_eq!(parse_control("started"), Some(Control::Started));
        assert_eq!(parse_control("exit 3"), Some(Control::Exit(3)));
        assert_eq!(parse_control("exit"), None);
        assert_eq!(parse_control("exit x"), None);
    }
}
