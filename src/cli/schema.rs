//! `keylatch schema`: the JSON Schema of the configuration.

pub fn schema() -> Result<(), String> {
    let text = serde_json::to_string_pretty(&crate::config::schema()).map_err(|e| e.to_string())?;
    println!("{text}");
    Ok(())
}
