//! AdmissionReview, version `admission.k8s.io/v1`, as far as this webhook reads and writes it.
//!
//! kube has it too, and writes a patch as an array of numbers where the API has base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version that is spoken.
const VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// What the API server asks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

/// The object in question.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// What the answer repeats.
    pub uid: String,
    /// Its namespace, if it has one.
    #[serde(default)]
    pub namespace: String,
    /// `CREATE` or another.
    #[serde(default)]
    pub operation: String,
    /// The object itself; nothing when it is deleted.
    #[serde(default)]
    pub object: Value,
}

impl Question {
    /// Reads one.
    ///
    /// # Errors
    /// What it is instead, in words.
    pub fn read(body: &[u8]) -> Result<Request, String> {
        let question: Self =
            serde_json::from_slice(body).map_err(|error| format!("the body is no {KIND} in JSON: {error}"))?;
        if (question.api_version.as_str(), question.kind.as_str()) != (VERSION, KIND) {
            let shown = |text: &str| text.chars().take(80).collect::<String>();
            return Err(format!(
                "the body is a {:?} of {:?}; this webhook answers {KIND} of {VERSION}",
                shown(&question.kind),
                shown(&question.api_version)
            ));
        }
        question.request.ok_or_else(|| format!("the {KIND} has no request"))
    }
}

/// What is answered.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    message: String,
}

impl Answer {
    /// Whatever is asked about is as it may be.
    pub fn allow(request: &Request) -> Self {
        let response = Response {
            uid: request.uid.clone(),
            allowed: true,
            status: None,
            patch: None,
            patch_type: None,
            warnings: Vec::new(),
        };
        Self { api_version: VERSION, kind: KIND, response }
    }

    /// It may be, with these changes (JSON Patch).
    pub fn with_patch(mut self, changes: Vec<Value>) -> Self {
        if !changes.is_empty() {
            self.response.patch = Some(STANDARD.encode(Value::Array(changes).to_string()));
            self.response.patch_type = Some("JSONPatch");
        }
        self
    }

    /// It may not be, for this reason.
    pub fn deny(mut self, message: String) -> Self {
        self.response.allowed = false;
        self.response.status = Some(Status { code: 422, reason: "Invalid", message });
        self
    }

    /// Whoever asked is told this. An API server cuts a warning at 256 signs or so.
    pub fn warn(mut self, warnings: Vec<String>) -> Self {
        self.response.warnings = warnings;
        self
    }
}
