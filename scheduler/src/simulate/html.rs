//! The report as one HTML file: nothing is fetched, light and dark follow the reader's setting.

use std::fmt::Write;

use super::measure::{Measured, POINTS, step_seconds};
use super::report::{Report, Row};
use super::svg::{Axis, Bar, Line, Scale, bars, digits, escaped, lines, tick};

const STYLE: &str = include_str!("report.css");
/// Priorities that are plotted together.
const BANDS: [(&str, std::ops::RangeInclusive<u8>); 3] =
    [("priority 0–2", 0..=2), ("priority 3–6", 3..=6), ("priority 7–9", 7..=9)];
/// A share of tasks below which a curve is made of too few to mean anything.
const LEAST_SHARE: f64 = 1e-4;

/// The page. `heading` is what was simulated, as its user calls it.
pub fn page(report: &Report, heading: &str) -> String {
    let mut out = String::new();
    let loads = report.loads();
    // The plots of one load show the highest that can be borne, since order matters most there.
    let load = loads
        .iter()
        .copied()
        .filter(|&load| load <= 1.0)
        .fold(None, |best: Option<f64>, load| Some(best.map_or(load, |best| best.max(load))));
    let load = load.or(loads.first().copied()).unwrap_or(1.0);
    let at_load: Vec<&Row> = report.rows.iter().filter(|row| row.load == load).collect();
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{}</title><style>{STYLE}</style></head><body><main><h1>{}</h1><p class=\"lead\">{}</p>",
        escaped(heading),
        escaped(heading),
        escaped(&report.description)
    );
    let seeds = report.rows.first().map_or(0, |row| row.seeds);
    let _ = write!(
        out,
        "<p class=\"note\">{} tasks a run, {seeds} {} of every policy at every load; figures are means with 95 % confidence intervals.</p>",
        grouped(report.tasks),
        if seeds == 1 { "run" } else { "runs" }
    );
    legend(&mut out, report.policies().iter().enumerate().map(|(number, name)| (number, name.clone())));

    if report.rows.iter().any(|row| row.figures.contains_key("cost_ratio")) {
        section(
            &mut out,
            "What waiting costs",
            "The sum of weight × time from arrival to end, as a multiple of what no order of service can beat (the broken line).",
        );
        each_load(&mut out, report, |rows| cost_bars(report, rows));
    }
    if report.rows.iter().any(|row| row.figures.contains_key("attainment")) {
        section(&mut out, "Deadlines met", "Of all tasks that came with a deadline, refused ones included.");
        if loads.len() > 1 {
            figure(&mut out, "", &over_loads(report, "attainment", "tasks in time", Scale::Linear, Some((0.0, 1.0))));
        } else {
            each_load(&mut out, report, |rows| attainment_bars(report, rows));
        }
        out.push_str("</div>");
    }
    section(
        &mut out,
        &format!("How long tasks wait at load {load}"),
        "The share of tasks that wait longer than so long: lower and further left is better, and the right end is the tail.",
    );
    for row in &at_load {
        figure(&mut out, &row.policy.to_string(), &wait_curves(row));
    }
    out.push_str("</div>");
    legend(
        &mut out,
        BANDS.iter().enumerate().map(|(number, (name, _))| (BAND_COLOURS[number % 3], (*name).to_owned())),
    );
    section(&mut out, "Over the loads and over time", &format!("The backlog is that of the first run at load {load}."));
    if loads.len() > 1 {
        figure(&mut out, "Mean wait", &over_loads(report, "wait_mean_s", "seconds", Scale::Log, None));
    }
    figure(&mut out, "Tasks waiting", &backlog_lines(report, &at_load));
    out.push_str("</div>");
    section(
        &mut out,
        "All figures",
        "Times in seconds. Cost: of the bound. Lowest: the longest wait of the lowest priority over the mean wait of all.",
    );
    out.push_str("</div>");
    table(&mut out, report);
    out.push_str("</main></body></html>\n");
    out
}

/// Colours of the bands, apart from those of the first policies.
const BAND_COLOURS: [usize; 3] = [3, 1, 0];

fn section(out: &mut String, title: &str, note: &str) {
    let _ =
        write!(out, "<h2>{}</h2><p class=\"note\">{}</p><div class=\"grid-of-plots\">", escaped(title), escaped(note));
}

fn figure(out: &mut String, caption: &str, svg: &str) {
    let caption =
        if caption.is_empty() { String::new() } else { format!("<figcaption>{}</figcaption>", escaped(caption)) };
    let _ = write!(out, "<figure>{caption}{svg}</figure>");
}

fn legend(out: &mut String, names: impl Iterator<Item = (usize, String)>) {
    out.push_str("<p class=\"legend\">");
    for (colour, name) in names {
        let _ = write!(out, "<span><i class=\"c{}\"></i>{}</span>", colour % super::svg::COLOURS, escaped(&name));
    }
    out.push_str("</p>");
}

fn each_load(out: &mut String, report: &Report, plot: impl Fn(&[&Row]) -> String) {
    for load in report.loads() {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.load == load).collect();
        figure(out, &format!("Load {load}"), &plot(&rows));
    }
    out.push_str("</div>");
}

fn bars_of(report: &Report, rows: &[&Row], name: &str, most: f64, title: &str) -> String {
    let of = |row: &&Row| {
        let interval = row.figures.get(name)?;
        let (name, colour) = (row.policy.to_string(), report.colour(row));
        Some(Bar { name, colour, value: interval.mean, half_width: interval.ci95.unwrap_or(0.0) })
    };
    bars(title, most, &rows.iter().filter_map(of).collect::<Vec<_>>())
}

fn cost_bars(report: &Report, rows: &[&Row]) -> String {
    let most = rows.iter().filter_map(|row| row.figures.get("cost_ratio"));
    let most = most.map(|interval| interval.mean + interval.ci95.unwrap_or(0.0)).fold(1.0, f64::max);
    bars_of(report, rows, "cost_ratio", most, "weighted waiting cost over the bound")
}

fn attainment_bars(report: &Report, rows: &[&Row]) -> String {
    bars_of(report, rows, "attainment", 1.0, "share of deadlines met")
}

fn over_loads(report: &Report, name: &str, title: &str, scale: Scale, ends: Option<(f64, f64)>) -> String {
    let policies = report.policies();
    let of_policy = |(number, policy): (usize, &String)| {
        let points = report.rows.iter().filter(|row| row.policy.to_string() == *policy);
        let points = points.filter_map(|row| Some((row.load, row.mean(name)?))).collect();
        Line { name: policy.clone(), colour: number, points }
    };
    let all: Vec<Line> = policies.iter().enumerate().map(of_policy).collect();
    let loads = report.loads();
    let least = loads.iter().copied().fold(f64::INFINITY, f64::min);
    let most = loads.iter().copied().fold(0.0, f64::max);
    let x = Axis { title: "load".to_owned(), scale: Scale::Linear, ends: Some((least, most)) };
    lines(title, &x, &Axis { title: title.to_owned(), scale, ends }, &all)
}

fn wait_curves(row: &Row) -> String {
    let band = |(number, (name, priorities)): (usize, &(&str, std::ops::RangeInclusive<u8>))| {
        let mut counts: Vec<u64> = Vec::new();
        for (_, steps) in row.runs.iter().flat_map(|run: &Measured| &run.waits).filter(|(p, _)| priorities.contains(p))
        {
            counts.resize(counts.len().max(steps.len()), 0);
            counts.iter_mut().zip(steps).for_each(|(sum, count)| *sum += count);
        }
        let all: u64 = counts.iter().sum();
        let mut left = all;
        let points = counts.iter().enumerate().map(|(step, count)| {
            left -= count;
            (step_seconds(step), left as f64 / all.max(1) as f64)
        });
        let points = points.filter(|point| point.1 > LEAST_SHARE / 2.0 && point.0 >= 1e-3).collect();
        Line { name: (*name).to_owned(), colour: BAND_COLOURS[number % 3], points }
    };
    let all: Vec<Line> = BANDS.iter().enumerate().map(band).filter(|line| !line.points.is_empty()).collect();
    let x = Axis { title: "wait, seconds".to_owned(), scale: Scale::Log, ends: Some((1e-3, 1e4)) };
    let y = Axis { title: "share that waits longer".to_owned(), scale: Scale::Log, ends: Some((LEAST_SHARE, 1.0)) };
    lines(&format!("waits under {}", row.policy), &x, &y, &all)
}

fn backlog_lines(report: &Report, rows: &[&Row]) -> String {
    let of_row = |row: &&Row| {
        let run = row.runs.first()?;
        let each_s = run.backlog_span_s / POINTS as f64;
        let points = run.backlog.iter().enumerate().map(|(point, &tasks)| ((point as f64 + 0.5) * each_s, tasks));
        Some(Line { name: row.policy.to_string(), colour: report.colour(row), points: points.collect() })
    };
    let all: Vec<Line> = rows.iter().filter_map(of_row).collect();
    let ends = all.iter().flat_map(|line| line.points.last()).map(|point| point.0).fold(1.0, f64::max);
    let x = Axis { title: "seconds".to_owned(), scale: Scale::Linear, ends: Some((0.0, ends)) };
    lines("tasks waiting", &x, &Axis { title: "tasks".to_owned(), scale: Scale::Linear, ends: None }, &all)
}

/// The table's heads, and the figures.
const COLUMNS: [(&str, &str); 12] = [
    ("in time", "attainment"),
    ("of accepted", "attainment_accepted"),
    ("cost", "cost_ratio"),
    ("mean wait", "wait_mean_s"),
    ("p50", "wait_p50_s"),
    ("p99", "wait_p99_s"),
    ("p99.9", "wait_p999_s"),
    ("longest", "wait_longest_s"),
    ("lowest", "starvation"),
    ("slowdown", "slowdown_mean"),
    ("Jain", "jain"),
    ("covered", "coverage"),
];

fn table(out: &mut String, report: &Report) {
    let used: Vec<_> =
        COLUMNS.iter().filter(|(_, name)| report.rows.iter().any(|row| row.figures.contains_key(name))).collect();
    out.push_str("<div class=\"scroll\"><table><thead><tr><th>policy</th><th>load</th>");
    for (head, _) in &used {
        let _ = write!(out, "<th>{head}</th>");
    }
    out.push_str("</tr></thead><tbody>");
    for row in &report.rows {
        let _ = write!(out, "<tr><td>{}</td><td>{}</td>", escaped(&row.policy.to_string()), tick(row.load));
        for (_, name) in &used {
            match row.figures.get(name) {
                Some(interval) => {
                    let around =
                        interval.ci95.map(|half| format!(" <small>±{}</small>", digits(half))).unwrap_or_default();
                    let _ = write!(out, "<td>{}{around}</td>", digits(interval.mean));
                }
                None => out.push_str("<td>–</td>"),
            }
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
}

/// 12,345.
fn grouped(number: usize) -> String {
    let text = number.to_string();
    let mut out = String::new();
    for (place, digit) in text.chars().enumerate() {
        if place > 0 && (text.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
