//! The size of a filesystem by its superblock: what tells, without a program, whether its device has
//! outgrown it.

use carina_core::{Bytes, FsType};

/// How much of a device's beginning [`size`] has to see.
pub(crate) const SUPERBLOCK_LENGTH: usize = 4096;

/// The size of the filesystem of this type whose device begins with `head`; `None` if there is none.
///
/// ext4: `s_blocks_count`, `s_log_block_size`, `s_feature_incompat` of the superblock at 1 KiB, little
/// endian. xfs: `sb_blocksize` and `sb_dblocks` at the very beginning, big endian. (Both are in the
/// kernel's documentation of the formats.)
pub(crate) fn size(fs: FsType, head: &[u8]) -> Option<Bytes> {
    match fs {
        FsType::Ext4 => {
            let le = |offset: usize| head.get(1024 + offset..)?.first_chunk::<4>().copied().map(u32::from_le_bytes);
            if head.get(1024 + 0x38..1024 + 0x3a)? != [0x53, 0xef] {
                return None;
            }
            const INCOMPAT_64BIT: u32 = 0x80;
            let high = if le(0x60)? & INCOMPAT_64BIT == 0 { 0 } else { le(0x150)? };
            let blocks = u64::from(high) << 32 | u64::from(le(4)?);
            let block = 1024_u64.checked_shl(le(0x18)?).filter(|block| *block <= 65536 && *block != 0)?;
            blocks.checked_mul(block).map(Bytes)
        }
        FsType::Xfs => {
            if head.get(..4)? != b"XFSB" {
                return None;
            }
            let block = u32::from_be_bytes(*head.get(4..)?.first_chunk::<4>()?);
            let blocks = u64::from_be_bytes(*head.get(8..)?.first_chunk::<8>()?);
            blocks.checked_mul(u64::from(block)).map(Bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read() {
        let mut ext4 = vec![0; SUPERBLOCK_LENGTH];
        ext4[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        ext4[1024 + 4..1024 + 8].copy_from_slice(&4096_u32.to_le_bytes());
        ext4[1024 + 0x18] = 2;
        assert_eq!(size(FsType::Ext4, &ext4), Some(Bytes::mib(16)));
        let mut xfs = vec![0; SUPERBLOCK_LENGTH];
        xfs[..4].copy_from_slice(b"XFSB");
        xfs[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        xfs[8..16].copy_from_slice(&(1_u64 << 18).to_be_bytes());
        assert_eq!(size(FsType::Xfs, &xfs), Some(Bytes::GIB));
        assert_eq!(size(FsType::Xfs, &ext4), None);
        assert_eq!(size(FsType::Ext4, &[0; SUPERBLOCK_LENGTH]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(mut head in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = (size(FsType::Ext4, &head), size(FsType::Xfs, &head));
            if head.len() > 1082 {
                head[1080..1082].copy_from_slice(&[0x53, 0xef]);
                head[..4].copy_from_slice(b"XFSB");
                let _ = (size(FsType::Ext4, &head), size(FsType::Xfs, &head));
            }
        }
    }
}
