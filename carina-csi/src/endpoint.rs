//! The unix socket that the driver listens on.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use carina_core::{Error, Result};
use futures::StreamExt;
use futures::stream::BoxStream;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixStream as UnixConnection;
use tokio_stream::wrappers::UnixListenerStream;

use crate::authority::Localhost;

/// The longest path of a unix socket: `sun_path` has 108 bytes, the last of them zero (unix(7)).
const PATH_LIMIT: usize = 107;

/// Where the driver listens: `unix:///path`, `unix:path` or a plain path, as `CSI_ENDPOINT` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    path: PathBuf,
}

impl Endpoint {
    /// The socket's path, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Listens there. A socket that a driver left behind is replaced, if nobody answers on it.
    ///
    /// # Errors
    /// [`Error::InUse`] if somebody answers, [`Error::Precondition`] if something there is not a socket,
    /// or the directory is missing. Nothing was removed then.
    pub fn listen(&self) -> Result<Listener> {
        let path = &self.path;
        let io = |operation: &str, error: &std::io::Error| Error::io(operation, path, error);
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("/"));
        let opened = fs::File::open(directory).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::Precondition(format!(
                "the socket's directory {} is not there; make it, or give another endpoint",
                directory.display()
            )),
            _ => Error::io("open the socket's directory", directory, &error),
        })?;
        // Two drivers that start at once must not each take the other's socket for a stale one. CSI lets
        // a driver put nothing beside its socket, so the lock is on the directory itself.
        let _lock = Flock::lock(opened, FlockArg::LockExclusive)
            .map_err(|(_, errno)| io("lock the socket's directory", &errno.into()))?;
        self.remove_stale()?;
        let listener = UnixListener::bind(path).map_err(|error| io("listen on the socket", &error))?;
        // Whoever may connect may mount.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(|error| io("protect the socket", &error))?;
        let metadata = fs::symlink_metadata(path).map_err(|error| io("look at the socket", &error))?;
        listener.set_nonblocking(true).map_err(|error| io("listen on the socket", &error))?;
        Ok(Listener { listener, socket: Socket { path: path.clone(), file: (metadata.dev(), metadata.ino()) } })
    }

    fn remove_stale(&self) -> Result<()> {
        let path = &self.path;
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("look at the socket", path, &error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(Error::Precondition(format!(
                    "{} is there and is not a socket; it was left alone. Remove it, or give another endpoint",
                    path.display()
                )));
            }
            Ok(_) => {}
        }
        match UnixStream::connect(path) {
            Ok(_) => Err(Error::InUse(format!(
                "a driver answers on {} already; stop it first, or give another endpoint",
                path.display()
            ))),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                tracing::info!(socket = %path.display(), "replace a socket that nobody answers on");
                fs::remove_file(path).map_err(|error| Error::io("remove a stale socket", path, &error))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("ask who is on the socket", path, &error)),
        }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |problem: String| {
            Error::InvalidArgument(format!(
                "endpoint {:?} cannot be used: {problem}; give a unix socket such as unix:///run/carina/csi.sock",
                text.chars().take(200).collect::<String>()
            ))
        };
        let path = match text.strip_prefix("unix:") {
            // unix://authority/path: the authority has to be empty.
            Some(rest) => match rest.strip_prefix("//") {
                Some(path) if path.starts_with('/') => path,
                Some(_) => return Err(bad("after unix:// comes an absolute path".to_owned())),
                None => rest,
            },
            None if text.contains("://") => return Err(bad("it is not a unix socket".to_owned())),
            None => text,
        };
        if path.is_empty() || path.ends_with('/') || path.contains('\0') {
            return Err(bad("it names no file".to_owned()));
        }
        let path = std::path::absolute(path).map_err(|error| bad(error.to_string()))?;
        let length = path.as_os_str().len();
        if length > PATH_LIMIT {
            return Err(bad(format!("its path has {length} bytes, and the kernel takes at most {PATH_LIMIT}")));
        }
        Ok(Self { path })
    }
}

/// A socket that is listened on.
#[derive(Debug)]
pub struct Listener {
    pub(crate) listener: UnixListener,
    pub(crate) socket: Socket,
}

/// The connections to a socket, as they come in.
pub type Connections = BoxStream<'static, std::io::Result<Localhost<UnixConnection>>>;

impl Listener {
    /// The connections as they come in, for a server of another kind, and the socket's file.
    ///
    /// # Errors
    /// [`Error::Backend`] if the runtime can't take the socket.
    pub fn into_parts(self) -> Result<(Connections, Socket)> {
        let Self { listener, socket } = self;
        let listener = tokio::net::UnixListener::from_std(listener)
            .map_err(|error| Error::io("listen on the socket", &socket.path, &error))?;
        Ok((UnixListenerStream::new(listener).map(|accepted| accepted.map(Localhost::new)).boxed(), socket))
    }
}

/// The socket's file; goes when this goes, unless it is somebody else's by then.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    file: (u64, u64),
}

impl Socket {
    /// Whether the file is still there, and still this socket's.
    #[must_use]
    pub fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.is_there()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(socket = %self.path.display(), %error, "the socket was not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_unix_sockets() {
        for text in ["unix:///run/csi.sock", "unix:/run/csi.sock", "/run/csi.sock"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().path(), Path::new("/run/csi.sock"), "{text}");
        }
        assert!("unix:csi.sock".parse::<Endpoint>().unwrap().path().is_absolute());
        let long = format!("unix:///{}", "x".repeat(107));
        for bad in ["", "unix://", "unix:", "unix://run/csi.sock", "tcp://127.0.0.1:10000", "/run/", long.as_str()] {
            assert!(matches!(bad.parse::<Endpoint>(), Err(Error::InvalidArgument(_))), "{bad}");
        }
        let just = format!("/{}", "x".repeat(106));
        assert!(just.parse::<Endpoint>().is_ok());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let endpoint = |name: &str| at(name).to_str().unwrap().parse::<Endpoint>().unwrap();
        drop(UnixListener::bind(at("stale.sock")).unwrap());
        assert!(at("stale.sock").exists(), "a socket outlives its listener");
        let listener = endpoint("stale.sock").listen().unwrap();
        assert!(matches!(endpoint("stale.sock").listen(), Err(Error::InUse(_))));
        assert_eq!(fs::metadata(at("stale.sock")).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!at("stale.sock").exists());
        fs::write(at("file"), "data").unwrap();
        assert!(matches!(endpoint("file").listen(), Err(Error::Precondition(_))));
        assert_eq!(fs::read(at("file")).unwrap(), b"data");
        assert!(matches!(endpoint("none/csi.sock").listen(), Err(Error::Precondition(_))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside the socket");
    }
}
