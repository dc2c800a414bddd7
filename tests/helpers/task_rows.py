"""A row of every data set, as its files have it."""

ROWS = {
    "gsm8k": {
        "question": "Betty has $1,000. She gets 1/5 as much. How much has she now?",
        "answer": "She gets 1000/5 = $<<1000/5=200>>200.\n"
        "She has 1000+200 = $<<1000+200=1200>>1200.\n#### 1,200",
    },
    "camel-ai/math": {
        "role_1": "Algebra_Quadratics",
        "topic;": "Algebra",
        "sub_topic": "Quadratics",
        "message_1": "Solve x - 2 = 3 for x.",
        "message_2": "Add 2 on both sides, 2 steps in all.\n\n$x = \\boxed{5}$, after 1 line.",
    },
    "ChilleD/SVAMP": {
        "ID": "chal-0",
        "Body": "A pack costs 76 dollars. The discount is 25 dollars",
        "Question": "What does a pack cost?",
        "Equation": "( 76.0 - 25.0 )",
        "Answer": "51.0",
        "Type": "Subtraction",
    },
    "ChilleD/MultiArith": {
        "question": "Eight friends play, 5 quit. Each has 5 lives. How many lives?",
        "final_ans": "15",
    },
    "arithmetic": {
        "question": "Ann has 2 pears and buys 3 more. How many now?",
        "answer": "2 + 3 = 5",
        "label": "add",
    },
    "sst2": {"sentence": "well-conceived ", "label": 1, "idx": 7},
    "qnli": {
        "question": "Where is the Rhine?",
        "sentence": "The Rhine flows through Basel.",
        "label": 0,
        "idx": 8,
    },
    "mnli": {
        "premise": "A man is asleep.",
        "hypothesis": "A man is awake.",
        "label": 2,
        "idx": 9,
    },
    "qa": {"question": "How far is it to the sea?", "answer": "It is 12 km.", "label": "maps"},
}
