//! The block ioctls: the one place where the kernel is called with pointers.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_longlong, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use carina_core::Bytes;

/// `struct blkpg_partition` of `<linux/blkpg.h>`.
#[repr(C)]
struct BlkpgPartition {
    start: c_longlong,
    length: c_longlong,
    pno: c_int,
    devname: [u8; 64],
    volname: [u8; 64],
}

/// `struct blkpg_ioctl_arg` of `<linux/blkpg.h>`.
#[repr(C)]
struct BlkpgIoctlArg {
    op: c_int,
    flags: c_int,
    datalen: c_int,
    data: *mut c_void,
}

/// What is done to a partition; the values of `<linux/blkpg.h>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Add = 1,
    Remove = 2,
    Resize = 3,
}

mod ioctls {
    use super::BlkpgIoctlArg;

    nix::ioctl_write_ptr_bad!(blkpg, nix::request_code_none!(0x12, 105), BlkpgIoctlArg);
    nix::ioctl_write_ptr_bad!(discard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// Tells the kernel of a partition that is there, has another length, or is gone (BLKPG).
pub(crate) fn partition(disk: BorrowedFd<'_>, op: Operation, number: u32, start: Bytes, size: Bytes) -> io::Result<()> {
    let signed = |n: u64| c_longlong::try_from(n).map_err(io::Error::other);
    let mut partition = BlkpgPartition {
        start: signed(start.get())?,
        length: signed(size.get())?,
        pno: c_int::try_from(number).map_err(io::Error::other)?,
        devname: [0; 64],
        volname: [0; 64],
    };
    let argument = BlkpgIoctlArg {
        op: op as c_int,
        flags: 0,
        datalen: c_int::try_from(size_of::<BlkpgPartition>()).map_err(io::Error::other)?,
        data: (&raw mut partition).cast(),
    };
    // SAFETY: the descriptor is open for as long as it is borrowed; both structures are laid out as the
    // kernel's, are initialized in full and outlive the call, and BLKPG keeps no pointer to them.
    unsafe { ioctls::blkpg(disk.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

/// Makes a stretch of the device read as zeroes (BLKZEROOUT). The kernel has the device do it where the
/// device can be trusted to, and writes zeroes itself where not.
pub(crate) fn zero_out(device: BorrowedFd<'_>, at: Bytes, size: Bytes) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as it is borrowed, and the argument is the two 64-bit
    // numbers that the kernel reads, alive during the call.
    unsafe { ioctls::zero_out(device.as_raw_fd(), &[at.get(), size.get()]) }?;
    Ok(())
}

/// Discards a stretch of the device (BLKDISCARD).
pub(crate) fn discard(device: BorrowedFd<'_>, at: Bytes, size: Bytes) -> io::Result<()> {
    // SAFETY: as for `zero_out`.
    unsafe { ioctls::discard(device.as_raw_fd(), &[at.get(), size.get()]) }?;
    Ok(())
}
