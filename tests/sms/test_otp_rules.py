"""Which number of a text is the code: each rule in several languages, and what it must not take."""

import tomllib

import pytest

from service.sms import otp
from tests.sms import otp_accuracy

NAMES = tomllib.loads((otp_accuracy.DATA / "code_names.toml").read_text("utf-8"))


def code(text):
    found = otp.extract(text)
    return found and found.code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zone88 password: 203941", "203941"),
        ("Cab 7710, your PIN is 203941", "203941"),
        ("Viaje 7710: su clave es 203941", "203941"),
        ("Course 7710, votre code est 203941", "203941"),
        ("Rit 7710: uw code is 203941", "203941"),
        ("Przejazd 7710, kod to 203941", "203941"),
        ("Поездка 7710: ваш код 203941", "203941"),
        ("Yolculuk 7710: şifreniz 203941", "203941"),
        ("行程7710，验证码：203941", "203941"),
        ("203941 is your code. 7710 Elm Street", "203941"),
        ("203941 is your code: keep it", "203941"),
        ("203941 is your code, and 551207 is your code", None),
        ("Your codes: 203941 and 551207", None),
        ("Welcome 203941 password: see letter", None),
    ],
)
def test_a_label_that_is_joined_to_a_number_serves_no_other(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("203941 is your Area51x password", "203941"),
        ("Your 4you2day code is 203941", "203941"),
        ("203941 ist dein Studi0s Code", "203941"),
        ("Votre compte Cine7 code: 203941", "203941"),
        ("4you2day code was sent by mail", None),
        ("K7QP2M is your code", "K7QP2M"),
        ("K7QP2M: votre code", "K7QP2M"),
        ("K7QP2M - ваш код", "K7QP2M"),
        ('"K7QP2M" doğrulama kodunuz', "K7QP2M"),
        ("The 2025 PIN guide", None),
    ],
)
def test_letters_and_digits_before_a_label_need_a_joint(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Meter token 5520-8871-2034-9918-4410", None),
        ("Token: 5520 8871 2034 9918 4410", None),
        ("PIN serial 55208-71203-49918", None),
        ("5520****3391 code changed", None),
        ("Contraseña de 5520•••3391 modificada", None),
        ("Пароль карты 5520 **** **** 3391 изменён", None),
        ("Card 5520****3391: your code is 203941", "203941"),
        ("Code: $12.50/203941", None),
        ("Your code is 203941.…2026", "203941"),  # parts of an SMS, one of them lost
        ("Your code is 203941…2026", None),
        ("Code: K7Q2", "K7Q2"),
        ("Code: K7Q", None),
        ("Code: 2 0 3 9", "2039"),
        ("Code: 2 0 3", None),
        ("Code: 20 39 41 55", "20394155"),
        ("Code: 203 94 1 55", None),
        ("Code: 2 0 3 9 4 1 5 5 1 2", "2039415512"),
        ("Code: 2 0 3 9 4 1 5 5 1 2 0", None),
        ("[#] 203941 is your code", "203941"),
        ("[#][Acme] Votre code : 203941", "203941"),
        ("<#>[Acme] 203941 ist dein Code", "203941"),
    ],
)
def test_a_part_of_a_longer_number_is_no_code(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Your password for a transfer to Dr. Hall Inc. is 203941",
        "Code for payment of 450 Rs. - 203941",
        "Пароль для перевода 450 руб. - 203941",
        "Код для магазина ТД Луч г. Омск: 203941",
        "Kod do płatności 450 zł. - 203941",
        "Code pour M. Petit et Mme. Roux : 203941",
        "Kod za uplatu 450 din. - 203941",
        "Ihr Code für Firma Huber u. Co. lautet 203941",
        "Enter the code. - 203941",
    ],
)
def test_no_sentence_ends_after_an_abbreviation_or_before_a_small_letter(text):
    assert code(text) == "203941"


def test_where_a_sentence_ends_decides_between_two_numbers():
    assert code("Number 77120 is next. Your code was sent: 203941") == "203941"
    assert code("203941 doğrulama kodunuz. 7710 Sokak") == "203941"
    assert code("Enter your code now. Then please pay 7710 at the desk") is None


@pytest.mark.parametrize(
    "text",
    [
        "Your prize code is 203941",
        "Here is your referral code: 203941",
        "The postal PIN is 560001",
        "Text STOP to short code 72975",
        "Your PUK code is 20394155",
        "Your boarding code is 203941",
        "Tu código de canje es 203941",
        "Seu código de rastreio: 203941",
        "Votre code de parrainage est 203941",
        "Ihr Referenz-Code ist 203941",
        "Il codice sconto è 203941",
        "Uw kortingscode: 203941",
        "Kod rabatowy to 203941",
        "Slevový kód: 203941",
        "A foglalási kód: 203941",
        "Код бронирования 203941",
        "Код замовлення: 203941",
        "Koda za popust 203941",
        "Din bokningskod är 203941",
        "Alennuskoodi on 203941",
        "İndirim kodunuz 203941",
        "رمز الحجز هو 203941",
        "کد تخفیف: 203941",
        "קוד ההזמנה: 203941",
        "बुकिंग कोड 203941",
        "รหัสการจอง 203941",
        "Mã giảm giá: 203941",
        "Kode pemesanan: 203941",
        "预订码203941",
        "予約コード：203941",
        "쿠폰 코드 203941",
        "The branch code changed: use 203941 from Monday",
    ],
)
def test_the_code_of_something_else_is_none(text):
    assert code(text) is None


@pytest.mark.parametrize("language", NAMES["one_time"])
def test_what_one_time_codes_are_called(language):
    for name in NAMES["one_time"][language]:
        for text in (f"{name}: 203941", f"Acme: {name} 203941.", f"203941 - {name}"):
            assert code(text) == "203941", text


@pytest.mark.parametrize("language", NAMES["other"])
def test_what_the_codes_of_other_things_are_called(language):
    for name in NAMES["other"][language]:
        for text in (f"{name}: 203941", f"{name} 203941."):
            assert code(text) is None, text


@pytest.mark.parametrize(
    "text",
    [
        "Your code for Booking.com is 203941",
        "Booking.com: 203941 is your code",
        "Your booking OTP is 203941",
        "Your code Bank Acme: 203941",  # "kode bank" is a bank's code, in Indonesian
        "203941 is the verification code for your order",
        "Code de vérification pour votre réservation : 203941",
        "Código de verificación para tu reserva: 203941",
        "Код подтверждения заказа: 203941",
        "予約確認の認証コード：203941",
    ],
)
def test_a_code_to_log_in_with_is_one_whatever_it_is_for(text):
    assert code(text) == "203941"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Chopin, 7710 Elm Street", None),
        ("Decoded 7710 frames", None),
        ("The unicode 7710 sign", None),
        ("Škoda 7710 je připravena", None),
        ("Kodak 7710 printer paper", None),
        ("Turpin 203941", None),
        ("Ihr Freischaltcode: 203941", "203941"),
        ("Uw inlogcode is 203941", "203941"),
        ("Din inloggningskod: 203941", "203941"),
        ("Kirjautumiskoodisi on 203941", "203941"),
        ("Teie turvakood on 203941", "203941"),
        ("Az aktiválókódja: 203941", "203941"),
        ("Staðfestingarkóðinn er 203941", "203941"),
        ("رقم البطاقة والرمز: 203941", "203941"),
        ("הקוד שלך: 203941", "203941"),
    ],
)
def test_a_label_in_a_word_counts_only_in_compounds_that_are_listed(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Your PIN for 203941 was reset", None),
        ("Two-step verification is on for 203941", None),
        ("Password changed by 203941", None),
        ("Code changed at 1830", None),
        ("Su contraseña para 203941 fue cambiada", None),
        ("A senha para 203941 foi alterada", None),
        ("Le mot de passe pour 203941 a changé", None),
        ("Das Kennwort für 203941 wurde geändert", None),
        ("La password per 203941 è cambiata", None),
        ("Wachtwoord voor 203941 gewijzigd", None),
        ("Hasło dla 203941 zmienione", None),
        ("Heslo pro 203941 změněno", None),
        ("Пароль для 203941 изменён", None),
        ("Lösenordet för 203941 är ändrat", None),
        ("203941 için şifre değişti", None),
        ("203941 के लिए पासवर्ड बदला", None),
        ("Kata sandi untuk 203941 diubah", None),
        ("Salasanasi on 203941", "203941"),  # "on" is "is" in Finnish
        ("Your password for today is 203941", "203941"),
        ("Din kode for i dag er 203941", "203941"),
    ],
)
def test_what_a_notice_is_about_is_no_code(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PIN reset case: 203941", None),
        ("Password request order: 203941", None),
        ("Contraseña, incidencia: 203941", None),
        ("Passwort Vorgang: 203941", None),
        ("Смена пароля, заявка: 203941", None),
        ("Your mobile verification code: 203941", "203941"),
        ("Code for your account: 203941", "203941"),
        ("Enter this code to verify your account: 203941", "203941"),
        ("Code für Ihr Konto: 203941", "203941"),
        ("Locker code: 7710", "7710"),
        ("To confirm your account enter 203941", "203941"),
        ("Your PIN was changed. The ticket is 203941", None),
        ("Votre code Box est le 203941", "203941"),
        ("Code casier : 7710", "7710"),
        ("Order: 203941 is your code", "203941"),
    ],
)
def test_another_word_with_a_colon_owns_its_number(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PIN 415-555-0132", None),
        ("Code: 415 555 0132", None),
        ("Código 415.555.0132", None),
        ("Your code is 72-48-91", "724891"),
        ("Code: 45-33-60", "453360"),
        ("Ihr Code: 31.12.25", None),
        ("Code sent 12/31/2025", None),
        ("Code changed 2025-31-12", None),
        ("Votre code : 20 39 41", "203941"),
        ("OTP: 203.941", "203941"),
        ("Amount 203.941, code sent", None),
        ("Your code: #203941", "203941"),
        ("#203941 is your code", "203941"),
        ("Code for #203941 was reset", None),
        ("Code: 203–941", "203941"),
        ("Dial *131*7710 to change your PIN", None),
        ("Code sent, call 203941551", None),
        ("Your code of today 203941551", None),
        ("Your code is 203941551", "203941551"),
        ("Your PIN, EUR 4500 paid", None),
        ("PIN entered: EUR4500", None),
        ("PIN for 450TLde and more", None),
    ],
)
def test_how_a_code_and_what_is_none_are_written(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Sign in with 203941",
        "Log in to Acme using 203941",
        "Mit 203941 einloggen",
        "Anmelden mit 203-941",
        "Usa 203941 para entrar",
        "Usa 203 941 per accedere",
        "Use 203941 para entrar",
        "Connectez-vous avec 203941",
        "Log ind med 203941",
        "Brug 203941 til din konto",
        "Logga in med 203941",
        "Log in met 203941",
        "Войдите с помощью 203941",
        "203941 ile giriş yapın",
        "Gunakan 203941 untuk lanjut",
        "203941でログインしてください",
        "203941로 로그인하세요",
        "Enter 20 39 41",
    ],
)
def test_verbs_that_point_to_a_code(text):
    assert code(text) == "203941"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Enter 7710 to log in", "7710"),
        ("Type 20394 on the keypad to verify the withdrawal", "20394"),
        ("Zadajte 7710 a overíte svoje číslo", "7710"),
        ("Sláðu inn 7710 til að staðfesta símanúmerið", "7710"),
        ("Tumia 7710 kuingia kwenye akaunti yako", "7710"),
        ("Gebruik TR4K9 om je wachtwoord opnieuw in te stellen", "TR4K9"),
        ("Use TR4K9 to reset your password", "TR4K9"),
        ("Please type the six digits 203 941", "203941"),
        ("Geben Sie dort 20 39 41 ein", "203941"),
        ("Bestätigen Sie den Kauf über 64,90 EUR mit 203941", "203941"),
        ("Enter 7710 in the form on page 3", None),
        ("Use TR4K9 at the till", None),
        ("We verify your account. Pay the bill of 300 with 203941 points", None),
    ],
)
def test_a_verb_points_to_a_short_code_beside_what_it_is_for(text, expected):
    assert code(text) == expected


def test_a_verb_in_a_word_is_none():
    assert code("Dang nhap 203941 thanh cong") is None  # nhập: to enter; đăng nhập: to log in


@pytest.mark.parametrize(
    "text",
    [
        "Hasło SMS to 203941",
        "Öryggisnúmerið er 203941",
        "Eich cod mynediad: 203941",
        "본인확인번호 203941",
        "आपकी पुष्टि संख्या 203941 है",
        "Ma xac nhan 203941, ma GD 551207",
        "NetCode 203941",
        "SMS kľúč na platbu je 203941",
        "Kwdikos: 203941",
        "Umubare wo kwemeza ni 203941",
        "Lakkoofsi mirkaneessaa 203941 dha",
        "203941 ny kaody fanamarinanao",
        "I-OTP yakho ngu-203941",
        "તમારો OTP 203941 છે, રૂ.999 ના પેમેન્ટ માટે",
        "Confirm your change by entering 203941",
    ],
)
def test_words_that_were_missing(text):
    assert code(text) == "203941"


@pytest.mark.parametrize(
    "text",
    [
        "You won the draw! PIN 7710",
        "Winner! Claim with code 203941",
        "Your gift card: PIN 7710",
        "Now serving token 7710",
        "¡Ganaste! Tu código: 203941",
        "Gewonnen! Code 203941",
        "Vous avez gagné, code 203941",
        "Hai vinto! PIN 7710",
        "Wygrałeś nagrodę, kod 203941",
        "Вы выиграли приз, код 203941",
        "Kazandınız! Ödülünüz için kod 203941",
        "恭喜中奖，密码203941",
        "Ma GD: 203941",
    ],
)
def test_a_code_in_a_message_about_a_prize_or_a_queue_is_none(text):
    assert code(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Use code 203941 for a free coffee",
        "Code 203941: 20% off everything",
        "Con el código 203941 tienes envío gratis",
        "Avec le code 203941, livraison offerte",
        "Mit dem Code 203941 sparen Sie 10 Euro",
        "Codice 203941: spedizione gratuita",
        "С кодом 203941 доставка бесплатно",
        "Kod 203941 ile kargo bedava",
        "用代码203941免运费",
        "コード203941で送料無料",
    ],
)
def test_a_code_in_advertising_is_none(text):
    assert code(text) is None


def test_a_prize_costs_no_code_to_log_in_with():
    assert code("Claim your prize: your verification code is 203941") == "203941"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The key code is under the mat, flat 7710", None),
        ("La clave está donde la vecina, casa 7710", None),
        ("Код у соседа, квартира 7710", None),
        ("Şifre komşuda, daire 7710", None),
        ("Our code works in summer 2025", None),
        ("Our code is open source! 7710 stars", None),
        ("Number 203941 was wrong. Codes come tomorrow", None),
        ("Your code for payment of 300 USD - 203941", "203941"),
        ("For the payment of 300 USD: code\n\n203941\n\nThank you", "203941"),
        ("Your verification code, which you asked for 5 minutes ago, 203941", "203941"),
    ],
)
def test_a_number_far_from_its_label_is_trusted_only_beside_words_about_a_login(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ticket for your password reset: 203941", None),
        ("Dossier pour le changement de mot de passe : 203941", None),
        ("Vorgang für Ihr neues Passwort: 203941", None),
        ("Ihr Paket zur Abholung mit Code: 7710", "7710"),
        ("Your order is ready for pickup with code: 203941", "203941"),
        ("Tilauksesi on noudettavissa koodilla: 7710", "7710"),  # "on" is "is" in Finnish
    ],
)
def test_a_label_that_says_what_another_thing_is_for_is_none(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("LINE認証番号：203941 30分以内", "203941"),
        ("OTP 7710 5 min", "7710"),
        ("Code 7710 551207 and 3391", None),
        ("Telegram code: 55 302", "55302"),
        ("Your code is 203 9417", "2039417"),
        ("Code for the shop in 55 302 Street", None),
        ("Free Mobile : votre code de confirmation est k7m2qx", "k7m2qx"),
        ("Código CUMPLE10 para tus compras", None),
        ("Your login code is CUMPLE10", "CUMPLE10"),
        ("Payment code RF48 9070 2041 8873", None),
        ("Code for the transfer: GB29 NWBK 6016 1331", None),
    ],
)
def test_a_number_and_the_count_after_it_are_two(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize("text", ["Your code is QGFDAE", "OTP: EXPIRED", "PIN is SECRET"])
def test_letters_alone_are_no_code(text):
    """Nothing in their look tells a code from a word."""
    assert code(text) is None
