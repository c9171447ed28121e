//! Stable UUIDs, derived from names so that a restart and a second process see the same ones.

/// `GPU-…` of the GPU with this index on the node that the seed names.
pub(crate) fn gpu_uuid(seed: &str, index: u32) -> String {
    format!("GPU-{}", uuid(&format!("{seed}\0{index}")))
}

/// `MIG-…` of the compute instance that was the GPU's n-th.
pub(crate) fn mig_uuid(gpu_uuid: &str, gi: u32, ci: u32, nth: u64) -> String {
    format!("MIG-{}", uuid(&format!("{gpu_uuid}\0{gi}\0{ci}\0{nth}")))
}

/// A UUID of version 8 (RFC 9562: vendor-specific content) from a name.
fn uuid(name: &str) -> String {
    // FNV-1a, finished with SplitMix64: near names must not give near UUIDs.
    let fnv = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let high = mix(fnv) & !0xf000 | 0x8000;
    let low = mix(fnv.wrapping_add(0x9e37_79b9_7f4a_7c15)) >> 2 | 1 << 63;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
