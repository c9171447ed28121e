//! Whether GPU memory is counted in GiB, and goes with the slices that are lent beside it.

use super::Judge;
use crate::report::books::Lines;
use crate::report::desk::slices_of;
use crate::report::input::{GPU_MEMORY, Unit};
use crate::report::mismatch::{Code, Found};

/// By how much a figure must exceed all GPUs together to be taken for another unit: MiB are 1024 times as many as GiB, and
/// nobody plans for so much more than there is.
const ORDERS: u64 = 64;
/// A cluster without GPUs is taken to get no more than these GiB.
const LARGEST: u64 = 1 << 20;

/// Whether an amount of GPU memory cannot be GiB, given how many all GPUs of the cluster have: more than all, and a multiple of
/// 1024 as MiB and bytes are, or more by orders.
pub fn is_other_unit(amount: u64, all_gib: u64) -> bool {
    let most = if all_gib == 0 { LARGEST } else { all_gib.saturating_mul(ORDERS) };
    amount > most || all_gib > 0 && amount > all_gib && amount.is_multiple_of(1024)
}

impl Judge<'_> {
    /// What a ClusterQueue or a Cohort lends.
    pub(super) fn check_units(&self, lines: &Lines, found: &mut Found) {
        for (flavor, lines) in lines {
            let Some(memory) = lines.get(&Unit::Memory).map(|line| line.nominal) else { continue };
            if is_other_unit(memory, self.all_gib) {
                let what =
                    format!("nominalQuota {memory} of {GPU_MEMORY} in flavor {flavor}, {}", self.beyond());
                found.note(Code::MemoryUnitMismatch, what);
                continue;
            }
            let with_gib = |(profile, line): (&crate::profile::ProfileName, &crate::report::books::Line)| {
                let gib = line.nominal.saturating_mul(profile.memory_gib().unwrap_or(0).into());
                (gib, Unit::Slices(profile.clone()).times(line.nominal))
            };
            let sizes: Vec<(u64, String)> =
                slices_of(lines).map(with_gib).filter(|(gib, _)| *gib > 0).collect();
            let all = sizes.iter().fold(0_u64, |sum, (gib, _)| sum.saturating_add(*gib));
            let Some((largest, which)) = sizes.into_iter().max() else { continue };
            if memory < largest {
                let what = format!(
                    "flavor {flavor}: {which} take {largest} GiB, and {memory} of {GPU_MEMORY} are lent beside them"
                );
                found.note(Code::MemoryUnitMismatch, what);
            } else if memory > all {
                let what = format!(
                    "flavor {flavor}: {memory} of {GPU_MEMORY} are lent, and all slices lent beside them take {all} GiB"
                );
                found.note(Code::MemoryUnitMismatch, what);
            }
        }
    }

    /// What an amount in another unit is beyond.
    pub(super) fn beyond(&self) -> String {
        if self.all_gib == 0 {
            "which is more GiB than clusters have".to_owned()
        } else {
            format!("and all GPUs of the cluster have {} GiB", self.all_gib)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mib_and_bytes_are_told_from_gib() {
        for (amount, all, other) in [
            (640, 640, false),
            (641, 640, false),
            (1000, 640, false),
            (2048, 640, true),
            (1024, 2048, false),
            (81_920, 640, true),
            (81_920, 100_000, false),
            (655_360, 640, true),
            (41_000, 640, true),
            (40_000, 640, false),
            (80 << 30, 640, true),
            (2048, 0, false),
            (80 << 30, 0, true),
        ] {
            assert_eq!(is_other_unit(amount, all), other, "{amount} of {all}");
        }
    }
}
