//! Means, and how sure they are.

/// A mean over seeds, and half the width of its 95 % confidence interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The mean of endless seeds is within so much of it, 95 times of 100; infinite for a single seed.
    pub half_width: f64,
}

impl Estimate {
    /// Of one value for each seed (Student's t).
    pub fn of(values: &[f64]) -> Self {
        let mean = mean(values);
        let Some(degrees) = values.len().checked_sub(1).filter(|degrees| *degrees > 0) else {
            return Self { mean, half_width: f64::INFINITY };
        };
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (squares / count(degrees)).sqrt();
        Self { mean, half_width: quantile(count(degrees)) * deviation / count(values.len()).sqrt() }
    }

    /// Of the differences, seed by seed: demand that is the same on both sides drops out.
    pub fn paired(left: &[f64], right: &[f64]) -> Self {
        Self::of(&left.iter().zip(right).map(|(left, right)| left - right).collect::<Vec<_>>())
    }

    /// The least that the interval allows.
    pub fn low(self) -> f64 {
        self.mean - self.half_width
    }

    /// The most that the interval allows.
    pub fn high(self) -> f64 {
        self.mean + self.half_width
    }
}

/// What Student's t does not exceed 975 times of 1000 (Cornish and Fisher's expansion, and the exact values where that is poor).
fn quantile(degrees: f64) -> f64 {
    const Z: f64 = 1.959_963_985;
    if let Some(exact) =
        [12.706, 4.303, 3.182].into_iter().zip(1..).find(|(_, n)| degrees < f64::from(*n) + 0.5)
    {
        return exact.0;
    }
    let (cube, fifth) = (Z.powi(3), Z.powi(5));
    let first = (cube + Z) / 4.0;
    let second = (5.0 * fifth + 16.0 * cube + 3.0 * Z) / 96.0;
    let third = (3.0 * Z.powi(7) + 19.0 * fifth + 17.0 * cube - 15.0 * Z) / 384.0;
    Z + first / degrees + second / degrees.powi(2) + third / degrees.powi(3)
}

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / count(values.len()) }
}

/// The least of ascending values that so many of 100 do not exceed; 0 of nothing.
pub fn percentile(ascending: &[f64], percent: usize) -> f64 {
    let rank = (ascending.len() * percent).div_ceil(100).max(1);
    ascending.get(rank - 1).copied().unwrap_or(0.0)
}

/// One number by another, neither of which is beyond four thousand million.
pub(super) fn ratio(some: u64, all: u64) -> f64 {
    let number = |n: u64| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    if all == 0 { 0.0 } else { number(some) / number(all) }
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, wanted: f64) {
        assert!((found - wanted).abs() < 0.002 * wanted.abs().max(1.0), "{found} is not {wanted}");
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (degrees, wanted) in [
            (1.0, 12.706),
            (2.0, 4.303),
            (3.0, 3.182),
            (4.0, 2.776),
            (9.0, 2.262),
            (29.0, 2.045),
            (59.0, 2.001),
        ] {
            assert!((quantile(degrees) - wanted).abs() < 0.012 * wanted, "{degrees}: {}", quantile(degrees));
        }
    }

    #[test]
    fn an_estimate_is_mean_and_interval() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0]);
        near(estimate.mean, 2.5);
        near(estimate.half_width, 3.182 * 1.290_994 / 2.0);
        near(Estimate::of(&[5.0]).mean, 5.0);
        assert!(Estimate::of(&[5.0]).half_width.is_infinite());
        let difference = Estimate::paired(&[1.1, 5.1, 9.1], &[1.0, 5.0, 9.0]);
        near(difference.mean, 0.1);
        assert!(difference.low() > 0.09 && difference.high() < 0.11);
    }

    #[test]
    fn percentiles_are_values_that_there_are() {
        let values: Vec<f64> = (1..=10).map(f64::from).collect();
        assert!(
            [(50, 5.0), (95, 10.0), (99, 10.0), (10, 1.0)]
                .iter()
                .all(|(p, v)| (percentile(&values, *p) - v).abs() < 1e-9)
        );
        assert!(percentile(&[], 50).abs() < 1e-9);
    }
}
