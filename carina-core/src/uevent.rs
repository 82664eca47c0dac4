//! What the kernel says of block devices as it happens: its uevents, over netlink.
//!
//! Every device that comes, goes or changes is told to all who listen; who doesn't keep up misses some,
//! and is told that. Format: `lib/kobject_uevent.c` of Linux; `man 7 netlink`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use async_trait::async_trait;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::{Error, Result};

/// The multicast group of the kernel's own messages; those of udevd are in another.
const KERNEL: u32 = 1;
/// Longer than any message: the kernel's have at most 2 KiB of properties.
const LONGEST: usize = 16 << 10;
/// Room for the messages of thousands of disks that come at once.
const BACKLOG: usize = 8 << 20;

/// What happened to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is there now.
    Add,
    /// It is gone.
    Remove,
    /// Something about it has changed: its size, its medium, its partitions, or what is written on it.
    Change,
    /// Anything else (moved, bound to a driver).
    Other,
}

/// What the kernel said of one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// What happened.
    pub action: Action,
    /// The device's name in sysfs (`sdb`).
    pub name: String,
    /// The properties that came with it (`DEVTYPE`, `DISKSEQ`, `RESIZE`).
    pub properties: BTreeMap<String, String>,
}

impl Uevent {
    /// Reads a message; `None` if it is of no block device, or makes no sense.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut parts = message.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let (action, path) = parts.next().and_then(|head| {
            let (action, path) = head.split_once('@')?;
            Some((action.to_owned(), path.to_owned()))
        })?;
        let property = |part: std::borrow::Cow<'_, str>| {
            part.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
        };
        let properties: BTreeMap<String, String> = parts.filter_map(property).collect();
        if properties.get("SUBSYSTEM").map(String::as_str) != Some("block") {
            return None;
        }
        let name = path.rsplit('/').next().filter(|name| !name.is_empty())?.to_owned();
        let action = match action.as_str() {
            "add" => Action::Add,
            "remove" => Action::Remove,
            "change" => Action::Change,
            _ => Action::Other,
        };
        Some(Self { action, name, properties })
    }

    /// Whether the device has another size by now.
    #[must_use]
    pub fn resized(&self) -> bool {
        self.properties.get("RESIZE").is_some_and(|value| value == "1")
    }
}

/// What was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Something happened to a block device.
    Device(Uevent),
    /// More happened than could be told: everything has to be looked at.
    Overflow,
}

/// Where news of devices comes from.
#[async_trait]
pub trait DeviceEvents: Send + 'static {
    /// The next that is heard; never comes where nothing is told. May be given up and asked again without
    /// a loss.
    async fn next(&mut self) -> Heard;
}

/// No news: where the kernel's can't be heard, and for devices that aren't the kernel's.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvents;

#[async_trait]
impl DeviceEvents for NoEvents {
    async fn next(&mut self) -> Heard {
        std::future::pending().await
    }
}

/// News from a channel; none comes once nobody can send any.
#[async_trait]
impl DeviceEvents for UnboundedReceiver<Heard> {
    async fn next(&mut self) -> Heard {
        match self.recv().await {
            Some(heard) => heard,
            None => std::future::pending().await,
        }
    }
}

/// The news of this machine's kernel.
#[derive(Debug)]
pub struct KernelEvents {
    /// Tokio has a type for datagram sockets of one kind only; for waiting, any kind is as good.
    socket: UnixDatagram,
}

impl KernelEvents {
    /// Listens from now on. Needs no right, but the host's network namespace (or, on kernels since 4.18,
    /// one of the first user namespace).
    ///
    /// # Errors
    /// [`Error::Backend`] if the kernel won't have it.
    pub fn listen() -> Result<Self> {
        let failed = |e: &io::Error| Error::io("listen to the kernel's news of disks", "netlink", e);
        let open = || -> Result<OwnedFd, Errno> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let protocol = SockProtocol::NetlinkKObjectUEvent;
            let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
            // Without the right to more, the usual backlog has to do: what it misses is told.
            if setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG).is_err() {
                let _ = setsockopt(&socket, sockopt::RcvBuf, &BACKLOG);
            }
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
            Ok(socket)
        };
        let socket = open().map_err(|e| failed(&e.into()))?;
        Ok(Self { socket: UnixDatagram::from_std(socket.into()).map_err(|e| failed(&e))? })
    }

    /// What is there to be read; `None` if it isn't the kernel's word on a block device.
    fn read(socket: &impl AsRawFd) -> io::Result<Option<Heard>> {
        let mut message = vec![0; LONGEST];
        match recvfrom::<NetlinkAddr>(socket.as_raw_fd(), &mut message) {
            // Any process may send to this socket; only the kernel has the port 0.
            Ok((length, Some(sender))) if sender.pid() == 0 => {
                Ok(message.get(..length).and_then(Uevent::parse).map(Heard::Device))
            }
            Ok(_) => Ok(None),
            Err(Errno::ENOBUFS) => Ok(Some(Heard::Overflow)),
            Err(Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl DeviceEvents for KernelEvents {
    async fn next(&mut self) -> Heard {
        loop {
            match self.socket.async_io(Interest::READABLE, || Self::read(&self.socket)).await {
                Ok(Some(heard)) => return heard,
                Ok(None) => {}
                Err(error) => {
                    tracing::error!("the kernel's news of disks can no longer be heard: {error}");
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(parts: &[&str]) -> Vec<u8> {
        let mut message = parts.join("\0").into_bytes();
        message.push(0);
        message
    }

    #[test]
    fn a_message_is_read_as_the_kernel_writes_it() {
        let path = "/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb";
        let resized = message(&[
            &format!("change@{path}"),
            "ACTION=change",
            &format!("DEVPATH={path}"),
            "SUBSYSTEM=block",
            "RESIZE=1",
            "MAJOR=254",
            "MINOR=16",
            "DEVNAME=vdb",
            "DEVTYPE=disk",
            "DISKSEQ=12",
            "SEQNUM=1789",
        ]);
        let uevent = Uevent::parse(&resized).unwrap();
        assert_eq!((uevent.action, uevent.name.as_str(), uevent.resized()), (Action::Change, "vdb", true));
        assert_eq!(uevent.properties["DISKSEQ"], "12");
        let slash = message(&["remove@/devices/x/block/cciss!c0d0", "SUBSYSTEM=block", "DEVNAME=cciss/c0d0"]);
        assert_eq!(Uevent::parse(&slash).unwrap().name, "cciss!c0d0");
    }

    #[test]
    fn what_is_no_block_device_s_is_no_news() {
        for other in [
            message(&["add@/devices/x/net/eth0", "SUBSYSTEM=net"]),
            message(&["libudev", "SUBSYSTEM=block"]),
            message(&["add@/", "SUBSYSTEM=block"]),
            message(&["add@/devices/x"]),
            Vec::new(),
            vec![0xff; 40],
        ] {
            assert_eq!(Uevent::parse(&other), None, "{other:?}");
        }
    }

    #[tokio::test]
    async fn what_another_process_says_is_not_heard() {
        use nix::sys::socket::{MsgFlags, getsockname, sendto};
        let mut events = KernelEvents::listen().unwrap();
        let port: NetlinkAddr = getsockname(events.socket.as_raw_fd()).unwrap();
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let liar = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol).unwrap();
        let lie = message(&["add@/devices/x/block/sdz", "SUBSYSTEM=block", "DEVNAME=sdz"]);
        let to = NetlinkAddr::new(port.pid(), 0);
        sendto(liar.as_raw_fd(), &lie, &to, MsgFlags::empty()).unwrap();
        let heard = tokio::time::timeout(std::time::Duration::from_millis(200), async {
            loop {
                // The machine's own devices may come and go meanwhile.
                if let Heard::Device(uevent) = events.next().await
                    && uevent.name == "sdz"
                {
                    break;
                }
            }
        });
        assert!(heard.await.is_err());
    }
}
