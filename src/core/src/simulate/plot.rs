//! Two pictures side by side, as SVG: how policies compare, and how full the GPUs are over time.

use std::fmt::Write;

/// One policy's figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// The policy.
    pub label: String,
    /// The figure.
    pub value: f64,
    /// Half the width of its interval; 0 for none.
    pub half_width: f64,
}

/// One policy's course.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The policy.
    pub label: String,
    /// Seconds, and the share of the units in use.
    pub points: Vec<(f64, f64)>,
}

/// Colours that differ for the colour-blind, too (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000"];

/// A rectangle of the picture, in its units, and the values at its edges.
#[derive(Clone, Copy, Debug)]
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    low: f64,
    high: f64,
}

impl Frame {
    fn x(&self, share: f64) -> f64 {
        self.left + self.width * share
    }

    fn y(&self, value: f64) -> f64 {
        self.top + self.height * (1.0 - (value - self.low) / (self.high - self.low))
    }
}

/// Bars on the left, lines on the right. Where all bars are from 0 to 1 they are shares, otherwise seconds.
pub fn comparison(bars: &[Bar], lines: &[Line]) -> String {
    let are_shares = bars.iter().all(|bar| (0.0..=1.0).contains(&bar.value));
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 300\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"860\" height=\"300\" fill=\"white\"/>\n",
    );
    let title =
        if are_shares { "Slices accepted, 95 % confidence" } else { "Mean wait in seconds, 95 % confidence" };
    text(&mut svg, 50.0, 20.0, "start", title);
    let values = bars.iter().flat_map(|bar| [bar.value - bar.half_width, bar.value + bar.half_width]);
    let (low, high) =
        values.fold((1.0, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
    // Shares differ in the second digit, so that bars from 0 would show nothing.
    let (low, high) =
        if are_shares { ((low * 20.0 - 0.2).floor() / 20.0, 1.0) } else { (0.0, high.max(1.0)) };
    let frame = Frame { left: 50.0, top: 32.0, width: 340.0, height: 220.0, low: low.max(0.0), high };
    grid(&mut svg, &frame, are_shares);
    draw_bars(&mut svg, &frame, bars);
    text(&mut svg, 450.0, 20.0, "start", "Units in use over time, first seed");
    let lowest = lines.iter().flat_map(|line| &line.points).map(|(_, share)| *share).fold(1.0, f64::min);
    let frame = Frame { left: 450.0, low: (lowest * 10.0).floor() / 10.0, high: 1.0, ..frame };
    let frame = Frame { low: if frame.low < 1.0 { frame.low } else { 0.0 }, ..frame };
    grid(&mut svg, &frame, true);
    draw_lines(&mut svg, &frame, lines);
    svg.push_str("</svg>\n");
    svg
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222222\">{words}</text>"
    );
}

fn grid(svg: &mut String, frame: &Frame, are_shares: bool) {
    for step in 0..=5 {
        let value = frame.low + (frame.high - frame.low) * f64::from(step) / 5.0;
        let (y, right) = (frame.y(value), frame.x(1.0));
        let _ = writeln!(svg, "<path d=\"M{:.1} {y:.1}H{right:.1}\" stroke=\"#dddddd\"/>", frame.left);
        let label = if are_shares { format!("{value:.2}") } else { format!("{value:.0}") };
        text(svg, frame.left - 6.0, y + 4.0, "end", &label);
    }
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

fn draw_bars(svg: &mut String, frame: &Frame, bars: &[Bar]) {
    for (index, bar) in bars.iter().enumerate() {
        let middle = frame.x((count(index) + 0.5) / count(bars.len()));
        let width = 0.6 * frame.width / count(bars.len());
        let (top, bottom) = (frame.y(bar.value), frame.y(frame.low));
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\"><title>{:.4}</title></rect>",
            middle - width / 2.0,
            (bottom - top).max(0.0),
            colour(index),
            bar.value,
        );
        if bar.half_width > 0.0 {
            let (up, down) = (frame.y(bar.value + bar.half_width), frame.y(bar.value - bar.half_width));
            let _ = writeln!(svg, "<path d=\"M{middle:.1} {up:.1}V{down:.1}\" stroke=\"#222222\"/>");
        }
        // Labels beside each other need room: every second one is lower.
        let lower = if index % 2 == 1 && bars.len() > 5 { 14.0 } else { 0.0 };
        text(svg, middle, bottom + 15.0 + lower, "middle", &bar.label);
    }
}

fn draw_lines(svg: &mut String, frame: &Frame, lines: &[Line]) {
    let times = || lines.iter().flat_map(|line| &line.points).map(|(time, _)| *time);
    let (begin, end) = (times().fold(f64::MAX, f64::min), times().fold(f64::MIN, f64::max));
    for (index, line) in lines.iter().enumerate() {
        let mut path = String::new();
        for (at, (time, share)) in line.points.iter().enumerate() {
            let x = frame.x((time - begin) / (end - begin).max(f64::MIN_POSITIVE));
            let _ = write!(path, "{}{x:.1} {:.1}", if at == 0 { 'M' } else { 'L' }, frame.y(*share));
        }
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.2\"/>",
            colour(index)
        );
        let (column, row) = (index % 4, index / 4);
        let (x, y) = (frame.left + 85.0 * count(column), frame.y(frame.low) + 15.0 + 14.0 * count(row));
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {:.1}h14\" stroke=\"{}\" stroke-width=\"3\"/>",
            y - 4.0,
            colour(index)
        );
        text(svg, x + 18.0, y, "start", &line.label);
    }
    if end > begin {
        text(
            svg,
            frame.x(1.0),
            frame.y(frame.low) + 43.0,
            "end",
            &format!("{:.0} h", (end - begin) / 3600.0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, value: f64) -> Bar {
        Bar { label: label.into(), value, half_width: 0.01 }
    }

    /// The heights of the bars.
    fn heights(svg: &str) -> Vec<f64> {
        let bars = svg.lines().filter(|line| line.contains("<title>"));
        let height = |line: &str| line.split("height=\"").nth(1)?.split('"').next()?.parse().ok();
        bars.map(|line| height(line).unwrap()).collect()
    }

    #[test]
    fn bars_are_as_high_as_their_figures_above_the_axis() {
        let svg = comparison(&[bar("a", 0.96), bar("b", 0.98)], &[]);
        // From 0.9 to 1 on 220.
        let [lower, higher] = heights(&svg)[..] else { panic!("two bars") };
        assert!((lower - 132.0).abs() < 0.2 && (higher - 176.0).abs() < 0.2, "{lower} {higher}");
        let svg = comparison(&[bar("a", 100.0), bar("b", 50.0)], &[]);
        let [high, low] = heights(&svg)[..] else { panic!("two bars") };
        assert!((high - 2.0 * low).abs() < 0.3 && svg.contains("Mean wait"), "{high} {low}");
    }

    #[test]
    fn lines_span_the_time_and_names_are_escaped() {
        let line = Line { label: "a<b&c".into(), points: vec![(0.0, 0.5), (3600.0, 1.0), (7200.0, 0.5)] };
        let svg = comparison(&[], &[line]);
        assert!(svg.contains("M450.0 252.0L620.0 32.0L790.0 252.0"), "{svg}");
        assert!(svg.contains("a&lt;b&amp;c") && svg.contains("2 h"));
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let svg = comparison(&[], &[]);
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
