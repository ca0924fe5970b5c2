"""Pieces of a vocabulary that few patients share: found, and taken out of a sentencepiece model.

A vocabulary travels with the weights. A piece of several characters that only a few people's
reports hold can be a name or a number of one of them; single characters say nothing of anybody.
What a piece spelt is then spelt by shorter ones.
"""

from collections import defaultdict

# wire types of protocol buffers (protobuf.dev, "Encoding"), of which a model's outermost message
# holds the last alone: its pieces, each a field 1, and its settings
_VARINT_BITS, _WIRE_TYPE, _LENGTH_DELIMITED = 7, 0b111, 2
_PIECE_FIELD = 1


def rare_pieces(processor, patients, min_patients):
    """Return the ids of pieces of two or more characters in fewer than `min_patients` patients.

    processor: a SentencePieceProcessor. patients: an iterable with the list of reports of each
    patient, normalised. A piece is in a report where its characters stand in it in this order,
    whether or not the report is encoded by it.
    """
    missing = {
        processor.id_to_piece(number): min_patients
        for number in range(processor.get_piece_size())
        if not (processor.is_control(number) or processor.is_unknown(number))
        and not processor.is_byte(number)
        and len(processor.id_to_piece(number)) > 1
    }
    # by their first two characters, so that each place of a text is looked up once
    sought = defaultdict(set)
    for piece in missing:
        sought[piece[:2]].add(piece)
    for reports in patients:
        for piece in _pieces_in(processor.normalize(reports), sought):
            missing[piece] -= 1
            if not missing[piece]:
                del missing[piece]
                sought[piece[:2]].discard(piece)
    return {processor.piece_to_id(piece) for piece in missing}


def _pieces_in(texts, sought):
    """Return the pieces of `sought`, {first two characters: pieces}, that stand in any text."""
    found = set()
    for text in texts:
        for place in range(len(text) - 1):
            if pieces := sought.get(text[place : place + 2]):
                found.update(piece for piece in pieces if text.startswith(piece, place))
    return found


def without_pieces(model, numbers):
    """Return the bytes of a sentencepiece model without the pieces of these ids.

    Those that stay keep their order and are numbered anew.
    """
    kept, start, number = [], 0, -1
    while start < len(model):
        tag, place = _varint(model, start)
        assert tag & _WIRE_TYPE == _LENGTH_DELIMITED
        length, place = _varint(model, place)
        end = place + length
        is_piece = tag >> _WIRE_TYPE.bit_length() == _PIECE_FIELD
        number += is_piece
        if not (is_piece and number in numbers):
            kept.append(model[start:end])
        start = end
    return b"".join(kept)


def _varint(data, place):
    """Return (number, place behind it): seven bits a byte, the lowest first."""
    number, shift = 0, 0
    while True:
        byte = data[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + _VARINT_BITS
        if byte < 0x80:
            return number, place
