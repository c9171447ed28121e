use std::collections::BTreeSet;

/// Which of the devices that would do are taken. The kubelet's own choice is the order of a Go map: any.
#[derive(Clone, Debug, Default)]
pub enum Choice {
    #[default]
    First,
    Last,
    /// Another order at every choice; the same ones for the same seed.
    Random(u64),
    /// These first.
    Prefer(Vec<String>),
}

impl Choice {
    pub fn order(&mut self, devices: &BTreeSet<String>) -> Vec<String> {
        let mut order: Vec<String> = devices.iter().cloned().collect();
        match self {
            Self::First => {}
            Self::Last => order.reverse(),
            Self::Random(seed) => {
                for last in (1..order.len()).rev() {
                    let other = usize::try_from(next(seed) % (last as u64 + 1)).unwrap();
                    order.swap(last, other);
                }
            }
            Self::Prefer(first) => {
                order.sort_by_key(|id| first.iter().position(|wanted| wanted == id).unwrap_or(usize::MAX));
            }
        }
        order
    }
}

/// SplitMix64.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
