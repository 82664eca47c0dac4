//! Ties: a fixed hash, the same on every platform and in every version.
//!
//! Every node has a place on a ring, the hash of its name; a request has one too, the hash of its
//! pod. Among nodes that are equally good, the first one clockwise from the request is taken. So two
//! requests spread over equal nodes, a repeated request comes to the same node, and an index finds
//! the winner without looking at every node of the tie.

/// A place on the ring: FNV-1a of 64 bits over the name, then the finalizer of SplitMix64, because
/// FNV alone leaves names that differ in their last sign close together.
#[must_use]
pub fn place_on_ring(name: &str) -> u64 {
    let fnv = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    mix(fnv)
}

/// The finalizer of SplitMix64.
pub(crate) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How far clockwise the node is from the request; the smallest wins a tie.
#[must_use]
pub const fn distance(request: u64, node: u64) -> u64 {
    node.wrapping_sub(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(place_on_ring(""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(place_on_ring("node-1"), 0x1395_0d4e_f307_e655);
    }
}
