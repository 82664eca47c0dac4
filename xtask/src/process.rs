//! A QEMU process: started, watched, ended, and the lines that it opens to us.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

/// How long QEMU may take to open its lines to us.
pub const CONNECT: Duration = Duration::from_secs(30);

/// A line between QEMU and us, that QEMU is going to open.
pub struct Line {
    /// Its name.
    pub name: &'static str,
    /// The socket that QEMU opens.
    pub path: PathBuf,
    listener: UnixListener,
}

impl Line {
    /// Listens for QEMU on a socket in this folder.
    pub fn listen(folder: &Path, name: &'static str) -> Result<Self> {
        let path = folder.join(name);
        let listener = UnixListener::bind(&path).context(format_args!("listening on {}", path.display()))?;
        listener.set_nonblocking(true).context("a socket")?;
        Ok(Self { name, path, listener })
    }

    /// Waits until QEMU has opened it.
    pub fn accept(self, shared: &Shared) -> Result<UnixStream> {
        let deadline = Instant::now() + CONNECT;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).context("a socket")?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("waiting for QEMU"),
            }
            if lock(&shared.state).gone || Instant::now() > deadline {
                return Err(Error::new("QEMU did not start"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What is known of a running machine, for all who wait for it.
#[derive(Default)]
pub struct Shared {
    /// What is known now.
    pub state: Mutex<State>,
    /// Wakes whoever waits for a change.
    pub changed: Condvar,
}

/// What is known of a running machine.
#[derive(Debug, Default)]
pub struct State {
    /// The command has started.
    pub started: bool,
    /// The command ended with this code, at this moment.
    pub exit: Option<(i32, Instant)>,
    /// QEMU has ended.
    pub gone: bool,
}

impl Shared {
    /// Changes it, and tells those who wait.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }
}

/// A lock that a panicking thread held is taken all the same: what it guards
/// is written whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// QEMU, and the thread that started it and sees it end. The thread has to
/// last: when it ends, the kernel ends its child.
pub struct Process {
    child: Arc<Mutex<Child>>,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    /// Runs the command.
    pub fn start(mut command: Command, shared: &Arc<Shared>) -> Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let shared = Arc::clone(shared);
        let keeper = thread::spawn(move || {
            let child = match command.spawn() {
                Ok(child) => Arc::new(Mutex::new(child)),
                Err(error) => {
                    let _ = sender.send(Err(error));
                    return;
                }
            };
            let _ = sender.send(Ok(Arc::clone(&child)));
            while let Ok(None) = lock(&child).try_wait() {
                thread::sleep(Duration::from_millis(10));
            }
            shared.change(|state| state.gone = true);
        });
        let child = receiver.recv().context("starting QEMU")?.context("QEMU did not run")?;
        Ok(Self { child, keeper: Some(keeper) })
    }

    /// Ends it at once.
    pub fn kill(&self) {
        // It fails only for one that has ended.
        let _ = lock(&self.child).kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}
