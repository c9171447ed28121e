//! What the benchmarks share.

use slicegate_core::geometry::{Model, Profile};

/// An A100-80GB.
pub fn a100() -> Model {
    let profile = |name: &str, id, size, starts: &[u8], max_count| Profile {
        name: name.parse().expect("a profile's name"),
        id,
        size,
        starts: starts.to_vec(),
        max_count,
        memory_mib: 9728 * u64::from(size),
    };
    Model {
        name: "NVIDIA A100-SXM4-80GB".into(),
        units: 8,
        profiles: vec![
            profile("1g.10gb", 19, 1, &[0, 1, 2, 3, 4, 5, 6], 7),
            profile("1g.10gb+me", 20, 1, &[0, 1, 2, 3, 4, 5, 6], 1),
            profile("1g.20gb", 15, 2, &[0, 2, 4, 6], 4),
            profile("2g.20gb", 14, 2, &[0, 2, 4], 3),
            profile("3g.40gb", 9, 4, &[0, 4], 2),
            profile("4g.40gb", 5, 4, &[0], 1),
            profile("7g.80gb", 0, 8, &[0], 1),
        ],
    }
}
