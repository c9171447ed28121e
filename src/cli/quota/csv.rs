//! Comma-separated values (RFC 4180), with line feeds.

/// A table with its header.
pub fn text(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = line(header.iter().copied());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str)));
    }
    text
}

fn line<'a>(fields: impl Iterator<Item = &'a str>) -> String {
    let quoted = |field: &str| {
        if field.contains(['"', ',', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.to_owned()
        }
    };
    fields.map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

/// A figure; nothing where there is none.
pub fn figure(figure: Option<u64>) -> String {
    figure.map(|figure| figure.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_taken_for_a_separator_is_quoted() {
        let row = ["a,b", "say \"no\"", "two\nlines", "plain"].map(str::to_owned).to_vec();
        assert_eq!(
            text(&["w", "x", "y", "z"], [row]),
            "w,x,y,z\n\"a,b\",\"say \"\"no\"\"\",\"two\nlines\",plain\n"
        );
    }
}
