//! Quotas and what is used of them, read.

use std::collections::BTreeMap;

use super::amount::{self, Amount};
use super::input::{Name, Quota, Unit, Usage};
use super::mismatch::{Code, Found};

/// What is lent of one unit in one flavor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// `nominalQuota`.
    pub nominal: u64,
    /// `borrowingLimit`.
    pub borrowing_limit: Option<u64>,
    /// `lendingLimit`.
    pub lending_limit: Option<u64>,
}

/// What is lent, by flavor and unit.
pub type Lines = BTreeMap<Name, BTreeMap<Unit, Line>>;

/// Reads the quotas that are about MIG. One that cannot be read counts as none, and is noted.
pub fn lines(quotas: &[Quota], found: &mut Found) -> Lines {
    let mut lines = Lines::new();
    for quota in quotas {
        let unit = match Unit::of(&quota.resource) {
            None => continue,
            Some(Ok(unit)) => unit,
            Some(Err(error)) => {
                let what = format!("resource {} in flavor {}: {error}", quota.resource, quota.flavor);
                found.note(Code::UnreadableQuota, what);
                continue;
            }
        };
        let mut read = |field: &str, text: &str| {
            let amount = amount::read(text);
            if let Some((code, why)) = odd(&unit, amount) {
                let what = format!("{field} {text} of {} in flavor {} {why}", quota.resource, quota.flavor);
                found.note(code, what);
            }
            amount.map_or(0, |amount| amount.whole)
        };
        let line = Line {
            nominal: read("nominalQuota", &quota.nominal),
            borrowing_limit: quota.borrowing_limit.as_deref().map(|text| read("borrowingLimit", text)),
            lending_limit: quota.lending_limit.as_deref().map(|text| read("lendingLimit", text)),
        };
        lines.entry(quota.flavor.clone()).or_default().insert(unit, line);
    }
    lines
}

/// What is wrong with an amount of a unit by the way it is written.
fn odd(unit: &Unit, amount: Option<Amount>) -> Option<(Code, &'static str)> {
    match (unit, amount) {
        (_, None) => Some((Code::UnreadableQuota, "is no number")),
        (Unit::Memory, Some(Amount { binary: true, .. })) => {
            Some((Code::MemoryUnitMismatch, "has a suffix of bytes"))
        }
        (Unit::Memory, Some(Amount { fraction: true, .. })) => {
            Some((Code::MemoryUnitMismatch, "is no whole number"))
        }
        (Unit::Slices(_), Some(Amount { binary: true, .. })) => {
            Some((Code::UnreadableQuota, "counts slices in powers of 1024"))
        }
        (Unit::Slices(_), Some(Amount { fraction: true, .. })) => {
            Some((Code::UnreadableQuota, "is no whole number of slices"))
        }
        _ => None,
    }
}

/// Adds the lines of another book. Limits are those of a ClusterQueue, and are lost.
pub fn merge(lines: &mut Lines, others: &Lines) {
    for (flavor, others) in others {
        let lines = lines.entry(flavor.clone()).or_default();
        for (unit, other) in others {
            let line = lines.entry(unit.clone()).or_default();
            *line = Line { nominal: line.nominal.saturating_add(other.nominal), ..Line::default() };
        }
    }
}

/// What is used: all of it, and what of it is borrowed; by flavor and unit.
pub type Used = BTreeMap<Name, BTreeMap<Unit, (u64, u64)>>;

/// Adds up usage, whoever has it.
pub fn used<'a>(usage: impl IntoIterator<Item = &'a Usage>) -> Used {
    let mut used = Used::new();
    let whole = |text: &str| amount::read(text).map_or(0, |amount| amount.whole);
    for usage in usage {
        let Some(Ok(unit)) = Unit::of(&usage.resource) else { continue };
        let (total, borrowed) = used.entry(usage.flavor.clone()).or_default().entry(unit).or_default();
        *total = total.saturating_add(whole(&usage.total));
        *borrowed = borrowed.saturating_add(usage.borrowed.as_deref().map_or(0, whole));
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(resource: &str, nominal: &str) -> Quota {
        Quota { flavor: "f".into(), resource: resource.into(), nominal: nominal.into(), ..Quota::default() }
    }

    #[test]
    fn what_cannot_be_read_counts_as_none_and_is_named() {
        let mut found = Found::default();
        let quotas = [
            quota("cpu", "lots"),
            quota("nvidia.com/mig-1g.10gb", "7"),
            quota("nvidia.com/mig-2g.20gb", "1500m"),
            quota("nvidia.com/mig-3g.40gb", "1Ki"),
            quota("nvidia.com/mig-4g.40gb", "lots"),
            quota("nvidia.com/mig-huge", "1"),
            quota("slicegate.dev/gpu-memory", "80Gi"),
        ];
        let lines = lines(&quotas, &mut found);
        let nominal = lines["f"].values().map(|line| line.nominal).collect::<Vec<_>>();
        assert_eq!(nominal, [7, 1, 1024, 0, 80 << 30], "{lines:?}");
        let messages = found.messages();
        let unreadable = &messages[&Code::UnreadableQuota];
        for what in [
            "nominalQuota 1500m of nvidia.com/mig-2g.20gb in flavor f is no whole number of slices",
            "nominalQuota 1Ki of nvidia.com/mig-3g.40gb in flavor f counts slices in powers of 1024",
            "nominalQuota lots of nvidia.com/mig-4g.40gb in flavor f is no number",
            "resource nvidia.com/mig-huge in flavor f: \"huge\" is not a MIG profile name",
        ] {
            assert!(unreadable.contains(what), "{unreadable}");
        }
        assert!(!unreadable.contains("cpu") && !unreadable.contains("1g.10gb in"), "{unreadable}");
        let memory = &messages[&Code::MemoryUnitMismatch];
        assert!(
            memory.starts_with(
                "nominalQuota 80Gi of slicegate.dev/gpu-memory in flavor f has a suffix of bytes."
            ),
            "{memory}"
        );
    }
}
