//! Line plots and bars as SVG text. Colours are classes (`c0` to `c7`), so that the page's style decides on them.

use std::fmt::Write;

pub const COLOURS: usize = 8;
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
const TICKS: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Log,
}

pub struct Axis {
    pub title: String,
    pub scale: Scale,
    /// Ends, when not those of the data.
    pub ends: Option<(f64, f64)>,
}

pub struct Line {
    pub name: String,
    pub colour: usize,
    pub points: Vec<(f64, f64)>,
}

/// Text that is safe inside an element and an attribute.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(character),
        }
    }
    out
}

/// A number as a tick says it.
pub fn tick(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1e6 => format!("{} M", trimmed(value / 1e6)),
        size if size >= 1e4 => format!("{} k", trimmed(value / 1e3)),
        size if size >= 1e-3 => trimmed(value),
        _ => format!("{value:.0e}"),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl Axis {
    fn ends(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let usable = |value: &f64| value.is_finite() && (self.scale == Scale::Linear || *value > 0.0);
        let (least, most) = values
            .filter(usable)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
        let (least, most) = self.ends.unwrap_or(if least <= most { (least, most) } else { (1.0, 10.0) });
        match self.scale {
            Scale::Log => {
                (10f64.powf(least.log10().floor()), 10f64.powf(most.log10().ceil().max(least.log10().floor() + 1.0)))
            }
            Scale::Linear if self.ends.is_some() => (least, most),
            Scale::Linear => {
                let step = step((most - least.min(0.0)).max(1e-9));
                ((least.min(0.0) / step).floor() * step, ((most / step).ceil() * step).max(step))
            }
        }
    }

    fn place(&self, value: f64, (least, most): (f64, f64)) -> f64 {
        let place = match self.scale {
            Scale::Linear => (value - least) / (most - least),
            Scale::Log => (value.max(least) / least).log10() / (most / least).log10(),
        };
        place.clamp(0.0, 1.0)
    }

    fn ticks(&self, (least, most): (f64, f64)) -> Vec<f64> {
        match self.scale {
            Scale::Log => {
                let (first, last) = (least.log10().round() as i32, most.log10().round() as i32);
                let every = ((last - first) / 6 + 1).max(1) as usize;
                (first..=last).step_by(every).map(|power| 10f64.powi(power)).collect()
            }
            Scale::Linear => {
                let step = step(most - least);
                let first = (least / step).ceil() as i64;
                let last = (most / step + 1e-9).floor() as i64;
                (first..=last).take(4 * TICKS).map(|number| number as f64 * step).collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, so that some five fit.
fn step(span: f64) -> f64 {
    let rough = span / TICKS as f64;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|&step| step >= rough).unwrap_or(rough)
}

/// Lines over two axes.
pub fn lines(title: &str, x: &Axis, y: &Axis, lines: &[Line]) -> String {
    let x_ends = x.ends(lines.iter().flat_map(|line| line.points.iter().map(|point| point.0)));
    let y_ends = y.ends(lines.iter().flat_map(|line| line.points.iter().map(|point| point.1)));
    let (across, up) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let at_x = |value: f64| LEFT + across * x.place(value, x_ends);
    let at_y = |value: f64| TOP + up * (1.0 - y.place(value, y_ends));
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        out,
        r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}"><title>{}</title>"#,
        escaped(title),
        escaped(title)
    );
    for value in y.ticks(y_ends) {
        let at = at_y(value);
        let _ = write!(
            out,
            r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - RIGHT,
            LEFT - 7.0,
            at + 3.5,
            tick(value)
        );
    }
    for value in x.ticks(x_ends) {
        let at = at_x(value);
        let _ = write!(
            out,
            r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{:.1}"/><text class="tick" x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 15.0,
            tick(value)
        );
    }
    let _ = write!(
        out,
        r#"<text class="axis" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text><text class="axis" transform="translate(13 {:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
        LEFT + across / 2.0,
        HEIGHT - 8.0,
        escaped(&x.title),
        TOP + up / 2.0,
        escaped(&y.title)
    );
    for line in lines {
        let usable = |&&(a, b): &&(f64, f64)| {
            a.is_finite()
                && b.is_finite()
                && (x.scale == Scale::Linear || a > 0.0)
                && (y.scale == Scale::Linear || b > 0.0)
        };
        let points: Vec<String> =
            line.points.iter().filter(usable).map(|&(a, b)| format!("{:.1},{:.1}", at_x(a), at_y(b))).collect();
        let colour = line.colour % COLOURS;
        let _ = write!(
            out,
            r#"<polyline class="line c{colour}" points="{}"><title>{}</title></polyline>"#,
            points.join(" "),
            escaped(&line.name)
        );
        if points.len() <= 8 {
            for &(a, b) in line.points.iter().filter(usable) {
                let (at_x, at_y) = (at_x(a), at_y(b));
                let _ = write!(
                    out,
                    r#"<circle class="dot c{colour}" cx="{at_x:.1}" cy="{at_y:.1}" r="3.5"><title>{}: {}</title></circle>"#,
                    escaped(&line.name),
                    tick(b)
                );
            }
        }
    }
    out.push_str("</svg>");
    out
}

pub struct Bar {
    pub name: String,
    pub colour: usize,
    pub value: f64,
    /// Half the interval around it.
    pub half_width: f64,
}

/// Bars to the right, from 0, on a common scale.
pub fn bars(title: &str, most: f64, bars: &[Bar]) -> String {
    const ROW: f64 = 26.0;
    const NAMES: f64 = 118.0;
    const NUMBERS: f64 = 58.0;
    let height = ROW * bars.len() as f64 + 8.0;
    let across = WIDTH - NAMES - NUMBERS;
    let mut out = String::new();
    let _ = write!(
        out,
        r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{}"><title>{}</title>"#,
        escaped(title),
        escaped(title)
    );
    let at = |value: f64| across * (value / most.max(1e-12)).clamp(0.0, 1.0);
    for (number, bar) in bars.iter().enumerate() {
        let top = 4.0 + ROW * number as f64;
        let (length, middle) = (at(bar.value), top + ROW / 2.0);
        let (from, to) = (NAMES + at(bar.value - bar.half_width), NAMES + at(bar.value + bar.half_width));
        let _ = write!(
            out,
            concat!(
                r#"<text class="name" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                r#"<rect class="bar c{}" x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" rx="2"/>"#,
                r#"<line class="whisker" x1="{:.1}" x2="{:.1}" y1="{:.1}" y2="{:.1}"/>"#,
                r#"<text class="value" x="{:.1}" y="{:.1}">{}</text>"#
            ),
            NAMES - 8.0,
            middle + 4.0,
            escaped(&bar.name),
            bar.colour % COLOURS,
            NAMES,
            top + 4.0,
            length.max(1.0),
            ROW - 8.0,
            from,
            to,
            middle,
            middle,
            to.max(NAMES + length) + 6.0,
            middle + 4.0,
            digits(bar.value)
        );
    }
    // The bound itself.
    if most > 1.0 {
        let one = NAMES + at(1.0);
        let _ = write!(out, r#"<line class="bound" x1="{one:.1}" x2="{one:.1}" y1="0" y2="{height}"/>"#);
    }
    out.push_str("</svg>");
    out
}

/// Three digits that count.
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        size if size >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let axis = |scale| Axis { title: String::new(), scale, ends: None };
        let linear = axis(Scale::Linear);
        let ends = linear.ends([3.0, 87.0].into_iter());
        assert_eq!((ends, linear.ticks(ends)), ((0.0, 100.0), vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0]));
        let log = axis(Scale::Log);
        let ends = log.ends([0.02, 0.0, 30.0].into_iter());
        assert_eq!(log.ticks(ends), [0.01, 0.1, 1.0, 10.0, 100.0]);
        assert_eq!(axis(Scale::Log).ends(std::iter::empty()), (1.0, 10.0));
    }

    #[test]
    fn names_cannot_leave_their_element() {
        let line = Line { name: "</title><script>".to_owned(), colour: 9, points: vec![(0.0, 1.0), (1.0, f64::NAN)] };
        let axis = || Axis { title: "a & b".to_owned(), scale: Scale::Linear, ends: None };
        let svg = lines("\"x\"", &axis(), &axis(), &[line]);
        assert!(!svg.contains("<script>") && svg.contains("a &amp; b") && svg.contains("c1"));
        assert!(!svg.contains("NaN"));
    }
}
