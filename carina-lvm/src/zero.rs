//! Making a logical volume read as zeroes, by the kernel's own means (BLKZEROOUT).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use carina_core::Bytes;

/// `O_EXCL` of a block device: refused while it is mounted or held (open(2)).
const EXCLUSIVE: i32 = nix::libc::O_EXCL | nix::libc::O_CLOEXEC;

nix::ioctl_write_ptr_bad!(zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);

/// Opens a device as its only user.
///
/// # Errors
/// What opening it failed with; busy while anything uses it.
pub fn open(device: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(EXCLUSIVE).open(device)
}

/// Makes a stretch read as zeroes. The kernel has the device do it where the device can be trusted to, and
/// writes zeroes itself where not.
///
/// # Errors
/// What the device failed with.
#[allow(unsafe_code)]
pub fn zero(device: &File, at: Bytes, size: Bytes) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as it is borrowed, and the argument is the two 64-bit numbers
    // that the kernel reads, alive during the call.
    unsafe { zero_out(device.as_raw_fd(), &[at.get(), size.get()]) }?;
    Ok(())
}
