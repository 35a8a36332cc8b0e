//! Streams whole lists as files. One page is in memory at a time, and the caller's session is checked for each page.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::extract::Revalidation;
use super::problem::Problem;

/// Rows of a page.
pub const PAGE: u32 = 1000;

/// File formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON object per line.
    #[default]
    Jsonl,
    /// CSV with a header line (RFC 4180).
    Csv,
}

/// A page of a list, and the position of the next one.
pub type Piece<T, M> = (Vec<T>, Option<M>);

/// Streams a list as a file. The first page is read before the response begins, so that an early error is an error
/// response; a later error aborts the transfer.
pub async fn stream<T, M, F, W>(api: Arc<Api>, revalidation: Revalidation, format: Format, name: &str, page: F) -> Result<Response, Problem>
where
    T: Serialize + Send + 'static,
    M: Send + 'static,
    F: Fn(Option<M>) -> W + Send + 'static,
    W: Future<Output = Result<Piece<T, M>, Problem>> + Send,
{
    let (rows, next) = page(None).await?;
    let named = !rows.is_empty();
    let first = write(format, &rows, true);
    let rest = stream::try_unfold((api, revalidation, page, next, named), move |(api, revalidation, page, next, named)| async move {
        let Some(mark) = next else { return Ok(None) };
        let broken = |problem: Problem| std::io::Error::other(serde_json::to_string(&problem).unwrap_or_default());
        revalidation.check(&api).await.map_err(broken)?;
        let (rows, next) = page(Some(mark)).await.map_err(broken)?;
        Ok::<_, std::io::Error>(Some((write(format, &rows, !named), (api, revalidation, page, next, named || !rows.is_empty()))))
    });
    let all = futures::StreamExt::chain(stream::once(std::future::ready(Ok(first))), rest);
    let (kind, ending) = match format {
        Format::Jsonl => ("application/x-ndjson", "jsonl"),
        Format::Csv => ("text/csv; charset=utf-8", "csv"),
    };
    let disposition = format!("attachment; filename=\"{name}.{ending}\"");
    Ok(([(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_DISPOSITION, disposition)], Body::from_stream(all)).into_response())
}

fn write<T: Serialize>(format: Format, rows: &[T], first: bool) -> Bytes {
    let mut out = Vec::new();
    let objects = rows.iter().filter_map(|row| serde_json::to_value(row).ok()?.as_object().cloned());
    match format {
        Format::Jsonl => objects.for_each(|object| {
            // Writing to memory cannot fail.
            let _ = serde_json::to_writer(&mut out, &object);
            out.push(b'\n');
        }),
        Format::Csv => {
            let mut csv = csv::Writer::from_writer(&mut out);
            for (index, object) in objects.enumerate() {
                if first && index == 0 {
                    let _ = csv.write_record(object.keys());
                }
                let _ = csv.write_record(object.values().map(cell));
            }
            let _ = csv.flush();
        }
    }
    Bytes::from(out)
}

/// A value as a CSV cell. Text that a spreadsheet would run as a formula gets an apostrophe: parts of it come from
/// refused clients.
fn cell(value: &serde_json::Value) -> String {
    let text = match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    };
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) && text.parse::<f64>().is_err() { format!("'{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_both_formats() {
        let rows = [serde_json::json!({ "a": "x,\"y\"", "b": ["1", "2"], "c": null, "d": -5, "e": "=cmd()" })];
        assert_eq!(write(Format::Jsonl, &rows, true), "{\"a\":\"x,\\\"y\\\"\",\"b\":[\"1\",\"2\"],\"c\":null,\"d\":-5,\"e\":\"=cmd()\"}\n");
        assert_eq!(write(Format::Csv, &rows, true), "a,b,c,d,e\n\"x,\"\"y\"\"\",1 2,,-5,'=cmd()\n");
        assert_eq!(write(Format::Csv, &rows, false), "\"x,\"\"y\"\"\",1 2,,-5,'=cmd()\n");
    }
}
