<?php
// Receives the codes, and accepts only what the service has signed. PHP 8 behind your web server,
// which sets WEBHOOK_SECRET and speaks HTTPS; or, to try it:
//
//     WEBHOOK_SECRET=whsec_... php -S 127.0.0.1:8080 receiver.php
//
// The signature is that of https://www.standardwebhooks.com; its libraries verify it too.

const TOLERANCE = 300; // seconds: what is older may be a copy that somebody sends again

// Whether $body, the very bytes that came, was signed with our secret just now
function is_genuine(string $key, string $body): bool
{
    $id = $_SERVER['HTTP_WEBHOOK_ID'] ?? '';
    $timestamp = $_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? '';
    if (!preg_match('/\A[0-9]{1,12}\z/', $timestamp) || abs(time() - (int) $timestamp) > TOLERANCE) {
        return false;
    }
    $expected = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$timestamp.$body", $key, true));
    // While a secret is being rotated, there are two signatures
    foreach (explode(' ', $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '') as $signature) {
        if (hash_equals($expected, $signature)) {
            return true;
        }
    }
    return false;
}

$key = base64_decode(substr(getenv('WEBHOOK_SECRET') ?: '', strlen('whsec_')));
if (strlen($key) < 24) { // with an empty key, anybody could sign
    error_log('WEBHOOK_SECRET must be your webhook secret, whsec_...');
    http_response_code(500);
    exit;
}
$body = file_get_contents('php://input');
if (!is_genuine($key, $body)) {
    error_log('refused: no good signature');
    http_response_code(401);
    exit;
}
$webhook = json_decode($body, true);
if ($webhook['event'] === 'otp_received') {
    // A webhook may come twice, with the same webhook-id. What takes long is for later:
    // after 5 seconds without an answer, the webhook counts as not delivered
    error_log("{$webhook['data']['phone_number']} {$webhook['data']['otp_code']}");
} else {
    error_log("event: {$webhook['event']}");
}
http_response_code(204);
