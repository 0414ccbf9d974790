//! The results as a picture: bars on a logarithmic scale, one colour per contender.

use std::fmt::Write as _;

use super::scenario::Row;

const COLOURS: [&str; 2] = ["#2f6f9f", "#c07030"];
const LEFT: f64 = 330.0;
const WIDTH: f64 = 420.0;
const LINE: f64 = 16.0;

/// An SVG document. Rows in milliseconds only: other units have other scales.
pub(crate) fn svg(columns: &[(&str, Vec<Row>)]) -> String {
    let timed: Vec<usize> = (0..columns[0].1.len())
        .filter(|index| columns[0].1[*index].unit == "ms")
        .collect();
    let most = columns
        .iter()
        .flat_map(|(_, rows)| rows.iter().filter(|row| row.unit == "ms"))
        .filter_map(|row| row.value)
        .fold(10.0_f64, f64::max)
        .log10();
    let mut body = String::new();
    let mut y = 20.0;
    for (column, (name, _)) in columns.iter().enumerate() {
        let colour = COLOURS[column % COLOURS.len()];
        let x = 20.0 + 90.0 * f64::from(u8::try_from(column).unwrap_or_default());
        write!(
            body,
            r#"<text x="{x}" y="{y}" fill="{colour}" font-weight="bold">{name}</text>"#
        )
        .expect("a String takes all");
    }
    for index in timed {
        y += LINE;
        let label = &columns[0].1[index].name;
        write!(
            body,
            r#"<text x="{}" y="{}" text-anchor="end">{label}</text>"#,
            LEFT - 8.0,
            y + 11.0
        )
        .expect("a String takes all");
        for (column, (_, rows)) in columns.iter().enumerate() {
            let Some(value) = rows.get(index).and_then(|row| row.value) else {
                continue;
            };
            let width = WIDTH * (value.max(1.0).log10() / most).max(0.005);
            let colour = COLOURS[column % COLOURS.len()];
            write!(
                body,
                r#"<rect x="{LEFT}" y="{y}" width="{width:.1}" height="12" fill="{colour}"/><text x="{:.1}" y="{}">{value:.1} ms</text>"#,
                LEFT + width + 5.0,
                y + 10.0
            )
            .expect("a String takes all");
            y += LINE;
        }
    }
    let height = y + LINE;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{height}" font-family="sans-serif" font-size="12"><rect width="860" height="{height}" fill="#fff"/>{body}</svg>"##
    )
}
