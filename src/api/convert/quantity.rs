//! Quantities, read exactly: sums of bytes over a namespace are more than a float holds.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What each suffix stands for: times a number, times a power of ten.
const SUFFIXES: [(&str, i128, i32); 16] = [
    ("", 1, 0),
    ("n", 1, -9),
    ("u", 1, -6),
    ("m", 1, -3),
    ("k", 1, 3),
    ("M", 1, 6),
    ("G", 1, 9),
    ("T", 1, 12),
    ("P", 1, 15),
    ("E", 1, 18),
    ("Ki", 1 << 10, 0),
    ("Mi", 1 << 20, 0),
    ("Gi", 1 << 30, 0),
    ("Ti", 1 << 40, 0),
    ("Pi", 1 << 50, 0),
    ("Ei", 1 << 60, 0),
];

/// A quantity in thousandths, rounded up as the API server does (`apis/core/v1/defaults.go`, `SetDefaults_ResourceList`), and no
/// more than it keeps (2^63 - 1). `None` when it cannot be read.
pub fn thousandths(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.as_str();
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && part.is_empty()) || part.contains('.') {
        return None;
    }
    let (factor, power) = SUFFIXES
        .iter()
        .find(|(known, ..)| *known == suffix)
        .map(|(_, factor, power)| (*factor, *power))
        .or_else(|| Some((1, suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?)))?;
    let power = power.checked_add(3)?.checked_sub(i32::try_from(part.len()).ok()?)?;
    let most = i128::from(i64::MAX) * 1000;
    let magnitude = magnitude(&format!("{whole}{part}"), factor, power).unwrap_or(most);
    Some(sign * magnitude.min(most))
}

/// `digits` × `factor` × 10^`power`, rounded up; `None` when it is too large.
fn magnitude(digits: &str, factor: i128, power: i32) -> Option<i128> {
    let value = digits.parse::<i128>().ok()?.checked_mul(factor)?;
    let ten = 10_i128.checked_pow(power.unsigned_abs());
    match ten {
        _ if value == 0 => Some(0),
        Some(ten) if power >= 0 => value.checked_mul(ten),
        Some(ten) => Some(value / ten + i128::from(value % ten != 0)),
        None if power >= 0 => None,
        // Less than a thousandth.
        None => Some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly_and_rounded_up_to_thousandths() {
        for (written, read) in [
            ("0", 0),
            ("3", 3000),
            ("0.1", 100),
            (".5", 500),
            ("2.", 2000),
            ("1500m", 1500),
            ("100200u", 101),
            ("1n", 1),
            ("1e-40", 1),
            ("0e99", 0),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("25e-1", 2500),
            ("1E", 10_i128.pow(21)),
            ("1k", 1_000_000),
            ("0.5Ki", 512_000),
            ("1.5Gi", 1_610_612_736_000),
            ("-2", -2000),
            ("+2", 2000),
            // What no float holds.
            ("9007199254740993", 9_007_199_254_740_993_000),
            ("100Ei", i128::from(i64::MAX) * 1000),
            ("1e40", i128::from(i64::MAX) * 1000),
        ] {
            assert_eq!(thousandths(&Quantity(written.to_owned())), Some(read), "{written}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_not_read() {
        for wrong in
            ["", "lots", ".", "-", "1.2.3", "1 Gi", "1gi", "1e", "e3", "1e3.5", "0x10", "1Gib", "--1"]
        {
            assert_eq!(thousandths(&Quantity(wrong.to_owned())), None, "{wrong}");
        }
    }
}
