//! A line over time, as SVG.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Size of a plot, in pixels.
const SIZE: (u32, u32) = (640, 240);

/// Faint enough to stay behind the lines.
const GRID: RGBColor = RGBColor(232, 234, 237);

const TEXT: RGBColor = RGBColor(80, 86, 94);

const MARK: RGBColor = RGBColor(150, 110, 200);

/// Lines can be told apart by those who see few colours, too.
pub(super) const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(230, 130, 0), RGBColor(0, 158, 115), RGBColor(140, 140, 140)];

/// One line: its name, and where it stands at which second. Nothing where it is not known.
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) points: Vec<(f64, Option<f64>)>,
}

/// How values are written beside the axis, and whether each step of it is ten times the one before.
#[derive(Clone, Copy)]
pub(super) enum Axis {
    Linear(fn(f64) -> String),
    Logarithmic(fn(f64) -> String),
}

impl Axis {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear(_) => value,
            Self::Logarithmic(_) => value.max(1.0).log10(),
        }
    }

    fn label(self, place: f64) -> String {
        match self {
            Self::Linear(show) => show(place),
            Self::Logarithmic(show) => show(10_f64.powf(place)),
        }
    }

    /// The range of places, and how many of them are labelled.
    fn range(self, places: impl Iterator<Item = f64> + Clone) -> (Range<f64>, usize) {
        let low = places.clone().min_by(f64::total_cmp).unwrap_or(0.0);
        let high = places.max_by(f64::total_cmp).unwrap_or(1.0);
        match self {
            Self::Linear(_) => (0.0..(high * 1.05).max(f64::MIN_POSITIVE.sqrt()), 6),
            Self::Logarithmic(_) => {
                let (low, high) = (low.floor(), (high.ceil()).max(low.floor() + 1.0));
                (low..high, (high - low) as usize + 1)
            }
        }
    }
}

/// Draws lines, with names at some seconds. None if there is nothing to draw.
pub(super) fn draw(
    series: &[Series],
    axis: Axis,
    marks: &[(f64, String)],
) -> Result<Option<String>> {
    let seconds = series.iter().flat_map(|series| &series.points).map(|(at, _)| *at);
    let Some(end) = seconds.max_by(f64::total_cmp).filter(|end| *end > 0.0) else {
        return Ok(None);
    };
    let known = series
        .iter()
        .flat_map(|series| &series.points)
        .filter_map(|(_, value)| value.map(|value| axis.place(value)));
    if known.clone().next().is_none() {
        return Ok(None);
    }
    let (places, labels) = axis.range(known);
    let mut svg = String::new();
    draw_on(&mut svg, series, axis, marks, (0.0..end, places, labels))
        .map_err(|error| anyhow!("drawing a plot: {error}"))?;
    Ok(Some(svg))
}

type Ranges = (Range<f64>, Range<f64>, usize);

fn draw_on(
    svg: &mut String,
    series: &[Series],
    axis: Axis,
    marks: &[(f64, String)],
    (seconds, places, labels): Ranges,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let font = ("sans-serif", 12).into_font().color(&TEXT);
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .margin_top(22)
        .x_label_area_size(26)
        .y_label_area_size(66)
        .build_cartesian_2d(seconds, places.clone())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(GRID)
        .label_style(font.clone())
        .x_labels(9)
        .y_labels(labels)
        .x_label_formatter(&|at| format!("{at:.0} s"))
        .y_label_formatter(&|place| axis.label(*place))
        .draw()?;
    for (at, name) in marks {
        chart.draw_series(LineSeries::new(
            [(*at, places.start), (*at, places.end)],
            MARK.mix(0.6).stroke_width(1),
        ))?;
        let (x, y) = chart.backend_coord(&(*at, places.end));
        area.draw(&Text::new(name.clone(), (x + 3, y - 14), font.color(&MARK)))?;
    }
    // The first one lies on top.
    let coloured: Vec<_> = series.iter().zip(COLOURS.iter().cycle()).collect();
    for (series, colour) in coloured.into_iter().rev() {
        // A hole in what is known is a hole in the line.
        for part in series.points.split(|(_, value)| value.is_none()) {
            let line = part.iter().filter_map(|(at, value)| Some((*at, axis.place((*value)?))));
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
        }
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(value: f64) -> String {
        format!("{value}")
    }

    #[test]
    fn a_line_with_a_hole_is_two_lines_and_nothing_is_no_plot() {
        let points = vec![
            (0.0, Some(1.0)),
            (1.0, Some(2.0)),
            (2.0, None),
            (3.0, Some(4.0)),
            (4.0, Some(5.0)),
        ];
        let series = [Series { name: "a", points }];
        let marks = [(1.5, "here".to_owned())];
        let svg = draw(&series, Axis::Linear(show), &marks).expect("a drawing").expect("a plot");
        assert_eq!(svg.matches("stroke=\"#0072B2\"").count(), 2, "{svg}");
        assert!(svg.contains("here"));
        let nothing = [Series { name: "a", points: vec![(0.0, None), (1.0, None)] }];
        assert!(draw(&nothing, Axis::Linear(show), &[]).expect("no error").is_none());
    }

    #[test]
    fn decades_are_whole() {
        let places = [180.0, 90_000.0].map(|value| Axis::Logarithmic(show).place(value));
        let (range, labels) = Axis::Logarithmic(show).range(places.into_iter());
        assert_eq!((range, labels), (2.0..5.0, 4));
    }
}
