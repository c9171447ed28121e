//! Quantities of Kubernetes, read as numbers of slices or of GiB.

/// A quantity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount {
    /// The whole part.
    pub whole: u64,
    /// Whether there is a fraction beside it, as in `1500m`.
    pub fraction: bool,
    /// Whether it is written with a suffix of powers of 1024, as nobody writes numbers of devices.
    pub binary: bool,
}

/// Reads a quantity (`apimachinery/pkg/api/resource/quantity.go`): digits, perhaps a fraction, and a suffix or an exponent. `None`
/// for what is none, or less than zero.
pub fn read(text: &str) -> Option<Amount> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let (power, binary) = scale(suffix)?;
    // In billionths, the finest that a quantity is: beyond that it is rounded up.
    let digits =
        |text: &str| text.bytes().fold(0_i128, |n, b| n.saturating_mul(10).saturating_add((b - b'0').into()));
    let fine: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let rest = fraction.bytes().skip(9).any(|b| b != b'0');
    let billionths = digits(whole).saturating_mul(BILLION).saturating_add(digits(&fine) + i128::from(rest));
    let scaled = match power {
        Power::Times(times) => billionths.saturating_mul(times),
        Power::Over(parts) => (billionths + parts - 1) / parts,
    };
    Some(Amount {
        whole: u64::try_from(scaled / BILLION).unwrap_or(u64::MAX),
        fraction: scaled % BILLION != 0,
        binary,
    })
}

const BILLION: i128 = 1_000_000_000;

enum Power {
    Times(i128),
    Over(i128),
}

fn scale(suffix: &str) -> Option<(Power, bool)> {
    let decimal = |exponent: u32| Some((Power::Times(10_i128.checked_pow(exponent)?), false));
    let binary = |times: u32| Some((Power::Times(1024_i128.pow(times)), true));
    match suffix {
        "" => decimal(0),
        "n" => Some((Power::Over(BILLION), false)),
        "u" => Some((Power::Over(1_000_000), false)),
        "m" => Some((Power::Over(1000), false)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            // No quantity is of that size.
            let size = exponent.unsigned_abs().min(24);
            if exponent < 0 { Some((Power::Over(10_i128.pow(size)), false)) } else { decimal(size) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, whole, fraction, binary) in [
            ("0", 0, false, false),
            ("8", 8, false, false),
            ("+8", 8, false, false),
            ("1k", 1000, false, false),
            ("1.5k", 1500, false, false),
            ("2e3", 2000, false, false),
            ("2E3", 2000, false, false),
            ("2E", 2_000_000_000_000_000_000, false, false),
            ("3000m", 3, false, false),
            ("1500m", 1, true, false),
            ("0.5", 0, true, false),
            (".5", 0, true, false),
            ("5.", 5, false, false),
            ("1n", 0, true, false),
            ("15e-1", 1, true, false),
            ("0.0000000001", 0, true, false),
            ("1Ki", 1024, false, true),
            ("80Gi", 80 << 30, false, true),
            ("99999999999999999999", u64::MAX, false, false),
        ] {
            assert_eq!(read(text), Some(Amount { whole, fraction, binary }), "{text}");
        }
        for text in ["", "-1", "many", "1 ", "1.2.3", ".", "1Kib", "1e", "0x10", "Gi"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
