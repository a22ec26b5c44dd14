//! Errors as problem JSON (RFC 9457), and which status each refusal has.

use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::core::family::ShareError;
use crate::core::path::PathError;
use crate::core::replica::Refusal;
use crate::core::storage::StoreError;
use crate::store::writer::SubmitError;

/// One error, as RFC 9457 section 3 shapes it.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { kind: "about:blank", title, status: status.as_u16(), detail: detail.into() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).expect("made from a status");
        let mut response = (status, axum::Json(self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl From<PathError> for Problem {
    fn from(error: PathError) -> Self {
        let status = match error {
            PathError::ValueTooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::NotFound | Refusal::NotShared(_) | Refusal::NoMember(_) | Refusal::NotQuarantined => {
                StatusCode::NOT_FOUND
            }
            Refusal::Invalid(error) => return error.clone().into(),
            Refusal::UnderEid { .. } | Refusal::Reserved(_) => StatusCode::FORBIDDEN,
            Refusal::Share(ShareError::Never(_) | ShareError::NeverGlobally(_)) => StatusCode::FORBIDDEN,
            Refusal::Share(_) | Refusal::StampExhausted | Refusal::BelowFloor(_) | Refusal::OtherFloor(_) => {
                StatusCode::CONFLICT
            }
            Refusal::Myself | Refusal::UnknownMode(_) | Refusal::OutsideFamily { .. } | Refusal::HashMismatch(_) => {
                StatusCode::BAD_REQUEST
            }
        };
        Self::new(status, refusal.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let status = match error {
            StoreError::Full => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Store(error) => error.into(),
            SubmitError::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        }
    }
}
