"""What prompts of TydiQA say in each of its nine languages. Knows no data.

Source: encoding_templates_with_context and encoding_templates_without_context of open-instruct's eval/tydiqa/run_eval.py
(commit 7c5ee77a1). The labels of question and answer are the same in both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """gold, closed: the instruction with a passage and without one. passage, question, answer: labels in front of these."""

    gold: str
    closed: str
    passage: str
    question: str
    answer: str


WORDINGS = {
    "arabic": Wording(
        gold="أجب على السؤال التالي بناءً على المعلومات في المقطع المعطى.",
        closed="أجب على السؤال التالي.",
        passage="المقطع:",
        question="السؤال:",
        answer="الإجابة:",
    ),
    "bengali": Wording(
        gold="প্রদত্ত অধ্যায়ের তথ্যের উপর ভিত্তি করে নিম্নলিখিত প্রশ্নের উত্তর দিন।",
        closed="নিম্নলিখিত প্রশ্নের উত্তর দিন।",
        passage="অধ্যায়:",
        question="প্রশ্ন:",
        answer="উত্তর:",
    ),
    "english": Wording(
        gold="Answer the following question based on the information in the given passage.",
        closed="Answer the following question.",
        passage="Passage:",
        question="Question:",
        answer="Answer:",
    ),
    "finnish": Wording(
        gold="Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.",
        closed="Vastaa seuraavaan kysymykseen.",
        passage="Kappale:",
        question="Kysymys:",
        answer="Vastaus:",
    ),
    "indonesian": Wording(
        gold="Jawab pertanyaan berikut berdasarkan informasi di bagian yang diberikan.",
        closed="Jawab pertanyaan berikut.",
        passage="Bagian:",
        question="Pertanyaan:",
        answer="Jawaban:",
    ),
    "korean": Wording(
        gold="주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.",
        closed="다음 질문에 답하십시오.",
        passage="문단:",
        question="질문:",
        answer="답변:",
    ),
    "russian": Wording(
        gold="Ответьте на следующий вопрос на основе информации в данном отрывке.",
        closed="Ответьте на следующий вопрос.",
        passage="Отрывок:",
        question="Вопрос:",
        answer="Ответ:",
    ),
    "swahili": Wording(
        gold="Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.",
        closed="Jibu swali lifuatalo.",
        passage="Kifungu:",
        question="Swali:",
        answer="Jibu:",
    ),
    "telugu": Wording(
        gold="ఇచ్చిన పేరాలోని సమాచారం ఆధారంగా కింది ప్రశ్నకు సమాధానం ఇవ్వండి.",
        closed="క్రింది ప్రశ్నకు సమాధానం ఇవ్వండి.",
        passage="పేరా:",
        question="ప్రశ్న:",
        answer="సమాధానం:",
    ),
}
